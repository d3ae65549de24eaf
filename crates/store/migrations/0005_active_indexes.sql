-- Most rows are history. These indexes hold only what still goes on.
CREATE INDEX launches_open_fleet ON launches (fleet_id) WHERE status NOT IN ('done', 'failed');
CREATE INDEX launches_open_backend ON launches (backend_id) WHERE status NOT IN ('done', 'failed');
CREATE INDEX instances_active ON instances (project_id, launch_id, launch_index) WHERE status <> 'terminated';
