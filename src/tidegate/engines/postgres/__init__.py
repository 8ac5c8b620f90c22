"""PostgreSQL: catalog, schema copy, COPY, pgoutput, apply, fence, sequences, hashes."""
