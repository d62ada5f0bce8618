"""Stream workers: ingest, join and decide. Pure cores, thin shells; torch is never imported here."""
