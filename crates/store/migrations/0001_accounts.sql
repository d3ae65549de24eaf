CREATE TABLE server_state (
    name TEXT PRIMARY KEY,
    content TEXT NOT NULL
);

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    name_lower TEXT NOT NULL,
    role TEXT NOT NULL,
    email TEXT,
    active BIGINT NOT NULL,
    deleted BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    token_hash TEXT NOT NULL,
    sealed_token TEXT NOT NULL,
    ssh_public_key TEXT NOT NULL,
    sealed_ssh_private_key TEXT NOT NULL
);
CREATE UNIQUE INDEX users_name ON users (name_lower) WHERE deleted = 0;
CREATE UNIQUE INDEX users_token ON users (token_hash);
CREATE INDEX users_created ON users (created_at, id);

CREATE TABLE public_keys (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    added_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    public_key TEXT NOT NULL
);
CREATE UNIQUE INDEX public_keys_fingerprint ON public_keys (user_id, fingerprint);

CREATE TABLE projects (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    name_lower TEXT NOT NULL,
    owner_id TEXT NOT NULL,
    is_public BIGINT NOT NULL,
    templates_repo TEXT,
    created_at BIGINT NOT NULL,
    deleted BIGINT NOT NULL,
    ssh_public_key TEXT NOT NULL,
    sealed_ssh_private_key TEXT NOT NULL
);
CREATE UNIQUE INDEX projects_name ON projects (name_lower) WHERE deleted = 0;
CREATE INDEX projects_created ON projects (created_at, id);

CREATE TABLE members (
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    role TEXT NOT NULL,
    PRIMARY KEY (project_id, user_id)
);
CREATE INDEX members_user ON members (user_id);

-- `config` is what anybody in the project may see; `sealed_config` is the whole of it, with credentials.
CREATE TABLE backends (
    id TEXT PRIMARY KEY,
    project_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    config TEXT NOT NULL,
    sealed_config TEXT NOT NULL,
    draining BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX backends_kind ON backends (project_id, kind) WHERE draining = 0;

CREATE TABLE secrets (
    id TEXT PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    sealed_value TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX secrets_name ON secrets (project_id, name);

CREATE TABLE repos (
    id TEXT PRIMARY KEY,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    info TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX repos_name ON repos (project_id, name);

CREATE TABLE repo_creds (
    repo_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    sealed_creds TEXT NOT NULL,
    PRIMARY KEY (repo_id, user_id)
);

CREATE TABLE code_blobs (
    repo_id TEXT NOT NULL,
    hash TEXT NOT NULL,
    bytes BLOB NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (repo_id, hash)
);

CREATE TABLE file_archives (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    hash TEXT NOT NULL,
    bytes BLOB NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX file_archives_hash ON file_archives (user_id, hash);
