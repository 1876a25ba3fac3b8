-- Forgets the Kafka cluster, and fences whoever led before. ?1 a nonce
update outbox_cursor
set epoch = epoch + 1, nonce = ?1, kafka_cluster = null, terms_unsettled = 0, trial_seq = null, trials = 0
