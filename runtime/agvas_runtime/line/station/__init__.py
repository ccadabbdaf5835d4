"""One station: source, inspector, triggers, deadline, outbox and drift."""
