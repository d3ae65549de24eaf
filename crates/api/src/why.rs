//! Why something is as it is: what was tried, what was said to it, and what happens next.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a question may be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhyKind {
    /// A run.
    Run,
    /// A fleet.
    Fleet,
    /// An instance of a fleet.
    Instance,
}

impl WhyKind {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            WhyKind::Run => "run",
            WhyKind::Fleet => "fleet",
            WhyKind::Instance => "instance",
        }
    }
}

/// The body of `why`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct WhyRequest {
    /// The name of a run, a fleet or an instance.
    pub name: String,
    /// What it is, where the name is that of several.
    #[serde(default)]
    pub kind: Option<WhyKind>,
}

/// Why something is as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Why {
    /// What it is.
    pub kind: WhyKind,
    /// Its name.
    pub name: String,
    /// Its identifier.
    pub id: Uuid,
    /// Its project.
    pub project_name: String,
    /// Where it is in its life.
    pub status: String,
    /// Why, in words.
    pub reason: Option<String>,
    /// What happens next, the soonest first.
    pub next: Vec<NextStep>,
    /// The last purchases for it, the oldest first.
    pub attempts: Vec<Attempt>,
    /// What happened to it, the oldest first; of a long story the end.
    pub story: Vec<StoryLine>,
    /// What else its project's users should know.
    pub notes: Vec<String>,
}

/// What all users of a project should know. An addition of ours: the official server does not know the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectNotes {
    /// One sentence each.
    pub notes: Vec<String>,
}

/// Something that happens next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NextStep {
    /// When; unset: as soon as what it waits for is there.
    pub at: Option<Timestamp>,
    /// What.
    pub what: String,
}

/// A purchase and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Attempt {
    /// When it was decided.
    pub at: Timestamp,
    /// The kind of backend.
    pub backend: String,
    /// The type of machines.
    pub instance_type: String,
    /// Where.
    pub region: String,
    /// The zone, where it was fixed.
    pub zone: Option<String>,
    /// Whether it was for machines that may be taken back.
    pub spot: bool,
    /// US dollars per machine and hour.
    pub price: f64,
    /// How many machines were wanted.
    pub count: u32,
    /// With fewer it is worthless.
    pub least: u32,
    /// What came of it.
    pub outcome: AttemptOutcome,
    /// How many machines were made.
    pub made: Option<u32>,
    /// What kind of refusal it was, in our word.
    pub kind: Option<String>,
    /// The backend's own word for it.
    pub code: Option<String>,
    /// What the backend said.
    pub message: Option<String>,
    /// When the same is asked again.
    pub next_try_at: Option<Timestamp>,
}

/// What came of a purchase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// The backend is being asked, or its machines are awaited.
    Open,
    /// All machines were made.
    Bought,
    /// Some were made.
    BoughtInPart,
    /// None was made.
    Failed,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoryLine {
    /// When.
    pub at: Timestamp,
    /// To what, such as `job train-0-0`.
    pub about: Vec<String>,
    /// Who did it; unset: the server itself.
    pub actor: Option<String>,
    /// What.
    pub message: String,
}
