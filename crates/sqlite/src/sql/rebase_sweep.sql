-- The sweep begins again: what has no receipt is found by its next lap.
update outbox_sweep set swept_to = 0
