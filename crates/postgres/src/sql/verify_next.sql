-- What do the next $3 messages above $1 and up to $2 look like at Kafka? Index: message_pkey, and held_edit_pkey for edits.
select f.seq, f.id, f.topic, f.created_at, f.key_sha256, f.payload_sha256, f.is_edited, f.edited_sha256
from outbox.fingerprint f
where f.seq > $1 and f.seq <= $2
order by f.seq
limit $3
