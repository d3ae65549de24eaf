CREATE TABLE fleets (
    id TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    leased_until BIGINT NOT NULL,
    leased_by TEXT NOT NULL,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    status TEXT NOT NULL,
    wanted BIGINT NOT NULL,
    spec TEXT NOT NULL,
    state TEXT NOT NULL
);
CREATE INDEX fleets_due ON fleets (due_at);
CREATE UNIQUE INDEX fleets_name ON fleets (project_id, name) WHERE status <> 'terminated';
CREATE INDEX fleets_created ON fleets (created_at);

CREATE TABLE launches (
    id TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    leased_until BIGINT NOT NULL,
    leased_by TEXT NOT NULL,
    project_id TEXT NOT NULL,
    fleet_id TEXT NOT NULL,
    backend_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    status TEXT NOT NULL,
    cancelled BIGINT NOT NULL,
    state TEXT NOT NULL
);
CREATE INDEX launches_due ON launches (due_at);
CREATE INDEX launches_fleet ON launches (fleet_id);
CREATE INDEX launches_backend ON launches (backend_id, status);

CREATE TABLE instances (
    id TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    leased_until BIGINT NOT NULL,
    leased_by TEXT NOT NULL,
    project_id TEXT NOT NULL,
    fleet_id TEXT NOT NULL,
    instance_num BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    status TEXT NOT NULL,
    end_order TEXT,
    launch_id TEXT,
    launch_index BIGINT,
    state TEXT NOT NULL
);
CREATE INDEX instances_due ON instances (due_at);
CREATE UNIQUE INDEX instances_slot ON instances (fleet_id, instance_num) WHERE status <> 'terminated';
CREATE UNIQUE INDEX instances_machine ON instances (launch_id, launch_index) WHERE launch_id IS NOT NULL;
CREATE INDEX instances_project ON instances (project_id, status);

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    leased_until BIGINT NOT NULL,
    leased_by TEXT NOT NULL,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    name TEXT NOT NULL,
    submitted_at BIGINT NOT NULL,
    priority BIGINT NOT NULL,
    status TEXT NOT NULL,
    deleted BIGINT NOT NULL,
    repo_id TEXT,
    stop_request TEXT,
    fleet_id TEXT,
    spec TEXT NOT NULL,
    state TEXT NOT NULL
);
CREATE INDEX runs_due ON runs (due_at);
CREATE UNIQUE INDEX runs_name ON runs (project_id, name) WHERE deleted = 0;
CREATE INDEX runs_submitted ON runs (submitted_at, id);
CREATE INDEX runs_project_submitted ON runs (project_id, submitted_at, id);
CREATE INDEX runs_status ON runs (status, project_id);

CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    leased_until BIGINT NOT NULL,
    leased_by TEXT NOT NULL,
    run_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    replica_num BIGINT NOT NULL,
    job_num BIGINT NOT NULL,
    submission_num BIGINT NOT NULL,
    submitted_at BIGINT NOT NULL,
    status TEXT NOT NULL,
    instance_id TEXT,
    end_order TEXT,
    released_at BIGINT,
    spec TEXT NOT NULL,
    state TEXT NOT NULL
);
CREATE INDEX jobs_due ON jobs (due_at);
CREATE UNIQUE INDEX jobs_submission ON jobs (run_id, replica_num, job_num, submission_num);
CREATE INDEX jobs_instance ON jobs (instance_id, status);

-- One row per block that a job holds: the unique key is what keeps two jobs off one block.
CREATE TABLE assignments (
    instance_id TEXT NOT NULL,
    block BIGINT NOT NULL,
    job_id TEXT NOT NULL,
    PRIMARY KEY (instance_id, block)
);
CREATE INDEX assignments_job ON assignments (job_id);
