-- The number that changes whenever an operator has acted. Index: held_action_operator.
select a.actions from outbox.operator_actions a
