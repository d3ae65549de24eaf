//! `dstack metrics`: what the jobs of a run use.

use anyhow::bail;
use api::client::endpoints;
use api::jobs::Job;
use api::runs::{GetRunRequest, Run};
use jiff::Timestamp;
use serde::Deserialize;

use crate::Outcome;
use crate::args::MetricsArgs;
use crate::output::{Table, format};
use crate::session::{Project, Session};

/// The newest points of one job.
#[derive(Debug, Default, Deserialize)]
struct JobMetrics {
    metrics: Vec<Metric>,
}

/// A series, newest first.
#[derive(Debug, Deserialize)]
struct Metric {
    name: String,
    values: Vec<f64>,
}

impl JobMetrics {
    fn newest(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|metric| metric.name == name)?.values.first().copied()
    }
}

pub(super) async fn run(session: &mut Session, args: &MetricsArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    let table = async |_: Timestamp| {
        let request = GetRunRequest { run_name: Some(args.run_name.clone()), id: None };
        let run = project.client.call(&endpoints::GET_RUN, &project.name, &request).await;
        let run = super::named(run, || format!("Run {} not found", args.run_name))?;
        table(&project, &run, args).await
    };
    super::show(session, args.watch, false, table).await?;
    Ok(Outcome::Done)
}

async fn table(project: &Project, run: &Run, args: &MetricsArgs) -> anyhow::Result<Table> {
    let mut table = Table::new(&["", "", "UTILIZATION", "MEMORY"]);
    let wanted = |job: &&Job| {
        let spec = &job.job_spec;
        args.replica.is_none_or(|replica| replica == spec.replica_num)
            && args.job.is_none_or(|num| num == spec.job_num)
    };
    let jobs: Vec<&Job> = run.jobs.iter().filter(wanted).collect();
    let named = |name: &str, number: Option<u32>| number.map(|number| format!("{name}={number}"));
    let wanted = [named("replica", args.replica), named("job", args.job)];
    let wanted: Vec<String> = wanted.into_iter().flatten().collect();
    // A run that waits for its start has no jobs yet.
    if jobs.is_empty() && !wanted.is_empty() {
        bail!("Run {} has no job matching {}", args.run_name, wanted.join(" "));
    }
    let several = jobs.iter().any(|job| job.job_spec.replica_num != jobs[0].job_spec.replica_num);
    for (index, job) in jobs.into_iter().enumerate() {
        if index != 0 {
            table.row(vec![]);
        }
        let spec = &job.job_spec;
        let path = format!("/api/project/{}/metrics/job/{}", project.name, args.run_name);
        let query = [
            ("replica_num", spec.replica_num.to_string()),
            ("job_num", spec.job_num.to_string()),
            ("limit", "1".to_owned()),
        ];
        let metrics: JobMetrics = project.client.get(&path, &query).await?;
        add_job(&mut table, job, several, &metrics);
    }
    Ok(table)
}

fn add_job(table: &mut Table, job: &Job, several_replicas: bool, metrics: &JobMetrics) {
    let memory = |used: Option<f64>, all: Option<f64>| match (used, all) {
        (Some(used), Some(all)) => format!("{}/{}", gigabytes(used), gigabytes(all)),
        (Some(used), None) => gigabytes(used),
        (None, _) => String::new(),
    };
    let percent =
        |value: Option<f64>| value.map(|value| format!("{}%", format::number(value, 0))).unwrap_or_default();
    let replica = if several_replicas { format!("replica={} ", job.job_spec.replica_num) } else { String::new() };
    let label = format!("{replica}job={}", job.job_spec.job_num);
    let cpus = metrics.newest("cpus_detected_num").filter(|cpus| 0.0 < *cpus).unwrap_or(1.0);
    table.row(vec![
        label.into(),
        "cpu".into(),
        percent(metrics.newest("cpu_usage_percent").map(|sum| sum / cpus)).into(),
        memory(metrics.newest("memory_working_set_bytes"), metrics.newest("memory_total_bytes")).into(),
    ]);
    let gpus = metrics.newest("gpus_detected_num").unwrap_or(0.0) as u32;
    for gpu in 0..gpus {
        let used = metrics.newest(&format!("gpu_memory_usage_bytes_gpu{gpu}"));
        table.row(vec![
            "".into(),
            format!("gpu={gpu}").into(),
            percent(metrics.newest(&format!("gpu_util_percent_gpu{gpu}"))).into(),
            memory(used, metrics.newest("gpu_memory_total_bytes")).into(),
        ]);
    }
}

fn gigabytes(bytes: f64) -> String {
    format!("{}GB", format::number(bytes / (1024.0 * 1024.0 * 1024.0), 0))
}
