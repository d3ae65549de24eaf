//! The events of a run's stream from servers that have none, such as the official one: asked for again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::endpoints::{GET_RUN, POLL_LOGS};
use super::stream::{RunStreamEvent, RunStreamOptions, Sender};
use super::{Client, ClientError};
use crate::ids::JobId;
use crate::jobs::JobSubmission;
use crate::logs::PollLogsRequest;
use crate::runs::{GetRunRequest, Run};

/// How often the server is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Pieces of a log in one call at most.
const PAGE: u32 = 1000;

/// Asks for a run and its logs.
pub(super) struct Poller {
    pub(super) client: Client,
    pub(super) project: String,
    pub(super) run_name: String,
    pub(super) options: RunStreamOptions,
    /// Where the log of each job goes on.
    pub(super) positions: BTreeMap<u32, Position>,
}

/// How much of a job's log is known.
#[derive(Debug, Clone)]
pub(super) struct Position {
    submission: JobId,
    /// The time of the last piece.
    time: Option<Timestamp>,
}

/// Nobody listens any more.
struct Gone;

impl Poller {
    /// Sends events until the run is finished, or once if it is not to be followed.
    pub(super) async fn poll(mut self, sender: Sender) {
        loop {
            match self.turn(&sender).await {
                Ok(Ok(true)) => tokio::time::sleep(INTERVAL).await,
                Ok(Ok(false)) | Err(Gone) => return,
                Ok(Err(error)) => {
                    // Nobody to tell is no reason to go on.
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            }
        }
    }

    /// Asks once. True: there may be more later.
    async fn turn(&mut self, sender: &Sender) -> Result<Result<bool, ClientError>, Gone> {
        let request = GetRunRequest { run_name: Some(self.run_name.clone()), id: None };
        let run = match self.client.call(&GET_RUN, &self.project, &request).await {
            Ok(run) => run,
            Err(error) => return Ok(Err(error)),
        };
        // The run is asked for before the logs: once it is finished, they are complete.
        let goes_on = self.options.follow && !run.status.is_finished();
        let submissions = self.submissions(&run);
        send(sender, RunStreamEvent::Run(Box::new(run))).await?;
        for (job_num, submission) in submissions {
            if let Err(error) = self.logs(job_num, submission, sender).await? {
                return Ok(Err(error));
            }
        }
        Ok(Ok(goes_on))
    }

    fn submissions(&self, run: &Run) -> Vec<(u32, JobId)> {
        let options = &self.options;
        let is_wanted = |replica, num| {
            options.logs && replica == options.replica && options.job.is_none_or(|wanted| wanted == num)
        };
        let last = |submissions: &[JobSubmission]| submissions.last().map(|last| last.id);
        run.jobs
            .iter()
            .filter(|job| is_wanted(job.job_spec.replica_num, job.job_spec.job_num))
            .filter_map(|job| Some((job.job_spec.job_num, last(&job.job_submissions)?)))
            .collect()
    }

    async fn logs(
        &mut self,
        job_num: u32,
        submission: JobId,
        sender: &Sender,
    ) -> Result<Result<(), ClientError>, Gone> {
        if self.positions.get(&job_num).is_none_or(|position| position.submission != submission) {
            self.positions.insert(job_num, Position { submission, time: self.options.since });
            send(sender, RunStreamEvent::Submission { job_num, id: submission }).await?;
        }
        let Some(position) = self.positions.get_mut(&job_num) else { return Ok(Ok(())) };
        let mut request = PollLogsRequest {
            run_name: self.run_name.clone(),
            job_submission_id: submission,
            start_time: position.time,
            end_time: None,
            descending: false,
            next_token: None,
            limit: PAGE,
            diagnose: false,
        };
        loop {
            let page = match self.client.call(&POLL_LOGS, &self.project, &request).await {
                Ok(page) => page,
                Err(error) => return Ok(Err(error)),
            };
            for event in page.logs {
                position.time = Some(event.timestamp);
                // What is not base64 was never a log.
                let bytes = STANDARD.decode(&event.message).unwrap_or_default();
                if !bytes.is_empty() {
                    send(sender, RunStreamEvent::Log { job_num, bytes: bytes.into() }).await?;
                }
            }
            if page.next_token.is_none() {
                return Ok(Ok(()));
            }
            request.next_token = page.next_token;
        }
    }
}

async fn send(sender: &Sender, event: RunStreamEvent) -> Result<(), Gone> {
    sender.send(Ok(event)).await.map_err(|_| Gone)
}
