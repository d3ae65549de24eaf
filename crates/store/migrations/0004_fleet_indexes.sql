CREATE INDEX instances_fleet ON instances (fleet_id, instance_num, created_at);
CREATE INDEX runs_fleet ON runs (fleet_id, status);
