CREATE INDEX launches_failed_project ON launches (project_id, created_at) WHERE status = 'failed';
