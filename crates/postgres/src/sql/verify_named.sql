-- Which of these ids ($1) are messages above $2 and up to $3? Ids have no index unless `outboxd migrate trace-indexes` made one, so the
-- caller asks for some hundred thousand places at a time.
select m.id, m.seq from outbox.message m where m.seq > $2 and m.seq <= $3 and m.id = any ($1::uuid[])
