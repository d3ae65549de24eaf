CREATE INDEX launches_failed_fleet ON launches (fleet_id, created_at) WHERE status = 'failed';
