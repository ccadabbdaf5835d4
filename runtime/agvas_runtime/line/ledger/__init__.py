"""The ledger of a station: one row per part, its images, its outbox, and how it is read and checked."""
