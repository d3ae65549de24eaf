-- `config.yml` lists the backend, or did when it was read last: whatever else made it, the file does not take it away.
ALTER TABLE backends ADD COLUMN from_file BIGINT NOT NULL DEFAULT 0;
