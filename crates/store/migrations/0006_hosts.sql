-- A machine of the user's own: its address, which only one instance may have, and the sealed keys to it.
ALTER TABLE instances ADD COLUMN host TEXT;
ALTER TABLE instances ADD COLUMN host_access TEXT;
CREATE UNIQUE INDEX instances_host ON instances (host) WHERE host IS NOT NULL AND status <> 'terminated';
