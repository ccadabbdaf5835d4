"""On the line: one verdict for each trigger, whatever happens, and a ledger of all of them."""
