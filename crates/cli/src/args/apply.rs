//! `dstack apply`

use api::configurations::{ConfigurationType, PortMapping};
use clap::{Args, ValueHint};

use super::resources::shorthand;
use super::{OfferOptions, ProjectOption, ResourceArgs, SelectionArgs};

/// `dstack apply`
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    /// Show this help message and exit.
    #[arg(short, long, value_name = "TYPE", num_args = 0..=1, value_parser = shorthand::<ConfigurationType>, exclusive = true)]
    #[expect(clippy::option_option, reason = "an option whose value may be left out")]
    pub(crate) help: Option<Option<ConfigurationType>>,
    /// The path to the configuration file. Specify - to read configuration from stdin. Defaults to $PWD/.dstack.yml
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<String>,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Force apply when no changes detected
    #[arg(long)]
    pub(crate) force: bool,
    /// Exit immediately after submitting configuration
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Show all plan properties including those with default values
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// The name of the run, fleet, volume or gateway. If not specified, a random name is assigned
    #[arg(short, long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Environment variables
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    pub(crate) env: Vec<String>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Options of `dstack apply` that only runs have.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) offers: OfferOptions,
    /// The private SSH key path for SSH tunneling
    #[arg(long, value_name = "SSH_PRIVATE_KEY")]
    pub(crate) ssh_identity: Option<String>,
    /// Exposed port or mapping
    #[arg(short, long = "port", value_name = "MAPPING", value_parser = PortMapping::parse)]
    pub(crate) ports: Vec<PortMapping>,
    /// Local address to bind. Defaults to localhost
    #[arg(long)]
    pub(crate) host: Option<String>,
    #[command(flatten)]
    pub(crate) resources: ResourceArgs,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
    #[command(flatten)]
    pub(crate) repo: RepoArgs,
    /// The repo branch to use for the run
    #[arg(long, help_heading = "Repo Options")]
    pub(crate) repo_branch: Option<String>,
    /// The hash of the repo commit to use for the run
    #[arg(long, help_heading = "Repo Options")]
    pub(crate) repo_hash: Option<String>,
    /// Do not use any repo for the run
    #[arg(long, conflicts_with = "repo", help_heading = "Repo Options")]
    pub(crate) no_repo: bool,
    /// Run arguments. Available in the configuration commands as ${{ run.args }}. Use -- to separate run options from
    /// dstack options
    #[arg(value_name = "RUN_ARGS")]
    pub(crate) run_args: Vec<String>,
}

/// A repository and how to read it.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Repo Options")]
pub(crate) struct RepoArgs {
    /// The repo to use for the run. Can be a local path or a Git repo URL.
    #[arg(short = 'P', long)]
    pub(crate) repo: Option<String>,
    /// An authentication token to access a private Git repo
    #[arg(short, long = "token", value_name = "OAUTH_TOKEN")]
    pub(crate) token: Option<String>,
    /// The private SSH key path to access a private Git repo
    #[arg(long, value_name = "SSH_PRIVATE_KEY")]
    pub(crate) git_identity: Option<String>,
}
