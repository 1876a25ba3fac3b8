-- Asks for a replay: ?1 who, ?2 why; ?3 seqs as a JSON array, ?4 correlation id, ?5 topic, ?6 key, ?7 inserted from, ?8 and before; ?9 first and
-- ?10 last place that is meant; ?11 topic that gets the copies, ?12 messages a second, ?13 how many messages are meant.
insert into outbox_replay
  (who, why, seqs, correlation_id, topic, key, created_from, created_before, seq_first, seq_last, to_topic, rate, total, pos)
values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?9 - 1)
returning replay
