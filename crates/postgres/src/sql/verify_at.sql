-- What do the messages at these places ($1) look like at Kafka? Index: message_pkey, and held_edit_pkey for edits.
select f.seq, f.id, f.topic, f.created_at, f.key_sha256, f.payload_sha256, f.is_edited, f.edited_sha256
from outbox.fingerprint f
where f.seq = any ($1::bigint[])
order by f.seq
