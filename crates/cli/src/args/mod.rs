//! What can be typed: only clap definitions, no behaviour.

mod apply;
mod event;
mod exchange;
mod gateway;
mod preset;
mod resources;
mod selection;
mod why;

use api::configurations::{EntityReference, PortMapping};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

pub(crate) use apply::{ApplyArgs, RepoArgs, RunArgs};
pub(crate) use event::{EventArgs, EventFilters};
pub(crate) use exchange::{ExportArgs, ExportCommand, ImportArgs, ImportCommand};
pub(crate) use gateway::{GatewayArgs, GatewayCommand};
pub(crate) use preset::{PresetArgs, PresetCommand};
pub(crate) use resources::ResourceArgs;
pub(crate) use selection::SelectionArgs;
pub(crate) use why::WhyArgs;

use crate::names::{self, Noun};

/// Run jobs on your own machines and on those of clouds.
///
/// Not sure where to start? Define a `.dstack.yml` configuration file and run it via `dstack apply`.
#[derive(Debug, Parser)]
#[command(
    name = "dstack",
    disable_version_flag = true,
    disable_help_subcommand = true,
    propagate_version = false,
    max_term_width = 120
)]
pub(crate) struct Cli {
    /// Show dstack version
    #[arg(short = 'v', long)]
    pub(crate) version: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Apply a configuration
    Apply(Box<ApplyArgs>),
    /// Attach to the run
    Attach(AttachArgs),
    /// Delete resources
    #[command(alias = "destroy")]
    Delete(DeleteArgs),
    /// View events
    Event(EventArgs),
    /// Manage exports
    Export(ExportArgs),
    /// Manage fleets
    Fleet(FleetArgs),
    /// Manage imports
    Import(ImportArgs),
    /// Manage gateways
    Gateway(GatewayArgs),
    /// Initialize the repo
    Init(InitArgs),
    /// List offers
    Offer(Box<OfferArgs>),
    /// Authorize the CLI using Single Sign-On
    Login(LoginArgs),
    /// Show logs
    Logs(LogsArgs),
    /// Show run metrics
    Metrics(MetricsArgs),
    /// Manage model serving presets
    Preset(PresetArgs),
    /// Manage projects configs
    Project(ProjectArgs),
    /// List runs
    Ps(PsArgs),
    /// Manage runs
    Run(RunCommandArgs),
    /// Manage secrets
    Secret(SecretArgs),
    /// Start a server
    #[command(disable_help_flag = true)]
    Server(ServerArgs),
    /// Join stdin and stdout to the SSH server of a job; OpenSSH's client runs it
    #[command(hide = true)]
    SshProxy(SshProxyArgs),
    /// Stop a run
    Stop(StopArgs),
    /// Check a configuration file without a server
    Validate(ValidateArgs),
    /// Manage volumes
    Volume(VolumeArgs),
    /// Tell why a run, a fleet or an instance is as it is, and what happens next
    Why(WhyArgs),
    /// Generate shell completion scripts
    Completion(CompletionArgs),
}

/// The project to talk to.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProjectOption {
    /// The name of the project. Defaults to $DSTACK_PROJECT
    #[arg(long, value_name = "NAME", global = true, add = names::of(Noun::Projects))]
    pub(crate) project: Option<String>,
}

/// How much to list.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ListOptions {
    /// Update listing in realtime
    #[arg(short, long, global = true)]
    pub(crate) watch: bool,
    /// Show more information
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

/// The form of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table.
    Plain,
    /// JSON.
    Json,
}

/// How to print a listing.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct FormatOptions {
    /// Output format (default: plain)
    #[arg(long, value_enum, conflicts_with = "json")]
    format: Option<Format>,
    /// Output in JSON format (equivalent to --format json)
    #[arg(long)]
    json: bool,
}

impl FormatOptions {
    /// The form to print.
    pub(crate) fn format(self) -> Format {
        self.wanted().unwrap_or(Format::Plain)
    }

    /// The form to print, where `other` was typed before the subcommand.
    pub(crate) fn or(self, other: FormatOptions) -> Format {
        self.wanted().unwrap_or(other.format())
    }

    fn wanted(self) -> Option<Format> {
        if self.json { Some(Format::Json) } else { self.format }
    }
}

/// Whether to ask.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct YesOption {
    /// Don't ask for confirmation
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// One resource, by name or identifier, as JSON.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The name
    #[arg(value_name = "NAME", required_unless_present = "id", conflicts_with = "id")]
    pub(crate) name: Option<String>,
    /// The ID (UUID)
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Output in JSON format
    #[arg(long, required = true)]
    pub(crate) json: bool,
}

/// One resource by name, as JSON.
#[derive(Debug, Args)]
pub(crate) struct GetByNameArgs {
    /// The name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Output in JSON format
    #[arg(long, required = true)]
    pub(crate) json: bool,
}

/// One resource to delete.
#[derive(Debug, Args)]
pub(crate) struct DeleteByNameArgs {
    /// The name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) confirm: YesOption,
}

/// `dstack attach`
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    #[arg(add = names::of(Noun::ActiveRuns))]
    pub(crate) run_name: String,
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    /// The private SSH key path for SSH tunneling
    #[arg(long, value_name = "SSH_PRIVATE_KEY")]
    pub(crate) ssh_identity: Option<String>,
    /// Print run logs as they follow
    #[arg(long)]
    pub(crate) logs: bool,
    /// Local address to bind. Defaults to localhost.
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Port mapping overrides
    #[arg(short, long = "port", value_name = "MAPPING", value_parser = PortMapping::parse)]
    pub(crate) ports: Vec<PortMapping>,
    /// The replica number. Defaults to any running replica.
    #[arg(long)]
    pub(crate) replica: Option<u32>,
    /// The job number inside the replica. Defaults to 0.
    #[arg(long)]
    pub(crate) job: Option<u32>,
    /// Show only logs newer than the specified date
    #[arg(long)]
    pub(crate) since: Option<String>,
}

/// `dstack delete`
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    /// The path to the configuration file. Defaults to $PWD/.dstack.yml
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<String>,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// `dstack fleet`
#[derive(Debug, Args)]
pub(crate) struct FleetArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    #[command(flatten)]
    pub(crate) list: ListOptions,
    #[command(subcommand)]
    pub(crate) command: Option<FleetCommand>,
}

/// The commands of `dstack fleet`.
#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// List fleets
    List,
    /// Delete fleets and instances
    Delete {
        /// The name of the fleet
        #[arg(value_parser = EntityReference::parse, add = names::of(Noun::Fleets))]
        name: EntityReference,
        /// The instances to delete
        #[arg(short, long = "instance", value_name = "INSTANCE_NUM")]
        instances: Vec<u32>,
        #[command(flatten)]
        confirm: YesOption,
    },
    /// Get a fleet
    #[command(mut_arg("name", |arg| arg.add(names::of(Noun::Fleets))))]
    Get(GetArgs),
}

/// `dstack init`
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    #[command(flatten)]
    pub(crate) repo: RepoArgs,
}

/// `dstack offer`
#[derive(Debug, Args)]
pub(crate) struct OfferArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    #[command(flatten)]
    pub(crate) format: FormatOptions,
    /// Group results by fields (gpu, backend, region, count). Optional, but if used, must include gpu. The use of
    /// region also requires backend. Can be repeated or comma-separated (e.g. --group-by gpu,backend).
    #[arg(long, value_delimiter = ',')]
    pub(crate) group_by: Vec<String>,
    #[command(flatten)]
    pub(crate) offers: OfferOptions,
    #[command(flatten)]
    pub(crate) resources: ResourceArgs,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
}

/// Which offers to show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Args)]
pub(crate) struct OfferOptions {
    /// Number of offers to show
    #[arg(long)]
    pub(crate) max_offers: Option<u32>,
    /// Show full offers not adjusted by requirements
    #[arg(long)]
    pub(crate) full_offers: bool,
    /// Subtract allocated resources to show only unallocated resources
    #[arg(long)]
    pub(crate) unallocated: bool,
}

/// `dstack login`
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The server URL, e.g. https://sky.dstack.ai
    #[arg(long)]
    pub(crate) url: String,
    /// The SSO provider name. Selected automatically if the server supports only one provider.
    #[arg(short, long)]
    pub(crate) provider: Option<String>,
    /// Don't ask for confirmation (e.g. set first project as default)
    #[arg(short, long, conflicts_with = "no")]
    pub(crate) yes: bool,
    /// Don't ask for confirmation (e.g. do not change default project)
    #[arg(short, long)]
    pub(crate) no: bool,
}

/// `dstack logs`
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[arg(add = names::of(Noun::Runs))]
    pub(crate) run_name: String,
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    /// Show run diagnostic logs
    #[arg(short, long)]
    pub(crate) diagnose: bool,
    /// Show new lines as they come, until the run is finished
    #[arg(short, long, conflicts_with = "diagnose")]
    pub(crate) follow: bool,
    /// The replica number. Defaults to 0.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub(crate) replica: u32,
    /// The job number inside the replica. Defaults to all, each line with its number before it.
    #[arg(long)]
    pub(crate) job: Option<u32>,
    /// Show only logs newer than the specified date. Can be a duration (e.g. 10s, 5m, 1d) or an RFC 3339 string (e.g.
    /// 2023-09-24T15:30:00Z).
    #[arg(long)]
    pub(crate) since: Option<String>,
}

/// `dstack metrics`
#[derive(Debug, Args)]
pub(crate) struct MetricsArgs {
    #[arg(add = names::of(Noun::ActiveRuns))]
    pub(crate) run_name: String,
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    /// Watch run metrics in realtime
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Show only this replica. By default, all jobs are shown.
    #[arg(long)]
    pub(crate) replica: Option<u32>,
    /// Show only this job number. By default, all jobs are shown.
    #[arg(long)]
    pub(crate) job: Option<u32>,
}

/// `dstack project`
#[derive(Debug, Args)]
pub(crate) struct ProjectArgs {
    /// Show more information
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    #[command(subcommand)]
    pub(crate) command: Option<ProjectCommand>,
}

/// The commands of `dstack project`.
#[derive(Debug, Subcommand)]
pub(crate) enum ProjectCommand {
    /// Add or update a project config
    Add {
        /// The name of the project to configure
        #[arg(long)]
        name: String,
        /// Server url
        #[arg(long)]
        url: String,
        /// User token
        #[arg(long)]
        token: String,
        /// Don't ask for confirmation (e.g. update the config)
        #[arg(short, long, conflicts_with = "no")]
        yes: bool,
        /// Don't ask for confirmation (e.g. do not update the config)
        #[arg(short, long)]
        no: bool,
    },
    /// Delete a project config
    Delete {
        /// The name of the project to delete
        #[arg(long)]
        name: String,
        /// Don't ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
    /// List configured projects
    List,
    /// Set default project
    SetDefault {
        /// The name of the project to set as default
        name: String,
    },
}

/// `dstack ps`
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    /// Show all runs. By default, it only shows unfinished runs or the last finished.
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Show more information about runs
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Watch statuses of runs in realtime
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Show only the last N runs. Implies --all
    #[arg(short = 'n', long)]
    pub(crate) last: Option<u32>,
    #[command(flatten)]
    pub(crate) format: FormatOptions,
}

/// `dstack run`
#[derive(Debug, Args)]
pub(crate) struct RunCommandArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    #[command(subcommand)]
    pub(crate) command: Option<RunCommand>,
}

/// The commands of `dstack run`.
#[derive(Debug, Subcommand)]
pub(crate) enum RunCommand {
    /// Get a run
    #[command(mut_arg("name", |arg| arg.add(names::of(Noun::Runs))))]
    Get(GetArgs),
}

/// `dstack secret`
#[derive(Debug, Args)]
pub(crate) struct SecretArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    #[command(subcommand)]
    pub(crate) command: Option<SecretCommand>,
}

/// The commands of `dstack secret`.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// List secrets
    List,
    /// Get secret value
    Get {
        /// The name of the secret
        #[arg(add = names::of(Noun::Secrets))]
        name: String,
    },
    /// Set secret
    Set {
        /// The name of the secret
        #[arg(add = names::of(Noun::Secrets))]
        name: String,
        /// The value of the secret
        value: String,
    },
    /// Delete secrets
    #[command(mut_arg("name", |arg| arg.add(names::of(Noun::Secrets))))]
    Delete(DeleteByNameArgs),
}

/// `dstack server`, which the program starts without this crate.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Options of the server; see `dstack server --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) rest: Vec<std::ffi::OsString>,
}

/// `dstack ssh-proxy`
#[derive(Debug, Args)]
pub(crate) struct SshProxyArgs {
    pub(crate) run_name: String,
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    /// The replica number
    #[arg(long, default_value_t = 0)]
    pub(crate) replica: u32,
    /// The job number inside the replica
    #[arg(long, default_value_t = 0)]
    pub(crate) job: u32,
}

/// `dstack stop`
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[arg(add = names::of(Noun::ActiveRuns))]
    pub(crate) run_name: String,
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    /// Kill at once, without the time to end by itself
    #[arg(short = 'x', long)]
    pub(crate) abort: bool,
    /// Don't ask for confirmation
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// `dstack validate`
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// The configuration file; `-` is stdin
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: String,
    /// Output in JSON format, on one line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `dstack volume`
#[derive(Debug, Args)]
pub(crate) struct VolumeArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    #[command(flatten)]
    pub(crate) list: ListOptions,
    #[command(subcommand)]
    pub(crate) command: Option<VolumeCommand>,
}

/// The commands of `dstack volume`.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// List volumes
    List,
    /// Delete volumes
    #[command(mut_arg("name", |arg| arg.add(names::of(Noun::Volumes))))]
    Delete(DeleteByNameArgs),
    /// Get a volume
    #[command(mut_arg("name", |arg| arg.add(names::of(Noun::Volumes))))]
    Get(GetByNameArgs),
}

/// `dstack completion`
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell to generate the completion script for
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

/// The shells that scripts are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}
