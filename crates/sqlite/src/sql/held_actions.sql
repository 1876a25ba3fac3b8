-- The number of the last operator action.
select coalesce(max(action), 0) as actions from outbox_held_action where kind <> 'cancel'
