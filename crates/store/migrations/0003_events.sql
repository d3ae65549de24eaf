CREATE TABLE events (
    id TEXT PRIMARY KEY,
    recorded_at BIGINT NOT NULL,
    message TEXT NOT NULL,
    actor_user_id TEXT
);
CREATE INDEX events_recorded ON events (recorded_at, id);

CREATE TABLE event_targets (
    event_id TEXT NOT NULL,
    place BIGINT NOT NULL,
    kind TEXT NOT NULL,
    project_id TEXT,
    target_id TEXT NOT NULL,
    name TEXT NOT NULL,
    run_id TEXT,
    fleet_id TEXT,
    PRIMARY KEY (event_id, place)
);
CREATE INDEX event_targets_target ON event_targets (target_id);
CREATE INDEX event_targets_project ON event_targets (project_id);
CREATE INDEX event_targets_run ON event_targets (run_id);
CREATE INDEX event_targets_fleet ON event_targets (fleet_id);
