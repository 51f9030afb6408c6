//! Chat templates in a process of their own.
//!
//! A template is a program that came with the model file. The interpreter bounds its instructions, not the work that one
//! instruction may do: values that double forty times, or hold themselves, take unbounded time, memory or stack in a
//! single comparison. So a rendering runs in a child (this program again, told by [`ARGUMENT`]) under the kernel's
//! limits, and what goes wrong there is one refused request. Input and answer are JSON over its standard streams.

use std::borrow::Cow;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::base::limits::{
    MARKED_BYTES_MAX, RENDER_CPU_S, RENDER_MEMORY_BYTES, RENDERED_BYTES_MAX, TEMPLATE_BYTES_MAX,
};
use crate::os::process;
use crate::text::{Template, TemplateInput, TextError};

/// The argument that makes a program render one template and exit. Not for people: `--help` does not know it.
pub const ARGUMENT: &str = "--render-template";

/// A rendering that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenderError {
    /// The template refused the conversation or is wrong; what was asked of it is not possible.
    #[error("{0}")]
    Text(#[from] TextError),
    /// The same, by the word of the child.
    #[error("{what}")]
    Refused {
        /// Why.
        what: String,
    },
    /// The child was ended by the limits, or by the work.
    #[error(
        "it was ended after more than {RENDER_CPU_S} s of work or {} MiB of memory, or ran off its stack ({status}); \
         the template is broken or hostile",
        RENDER_MEMORY_BYTES >> 20
    )]
    Ended {
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// There is no child.
    #[error("the process that renders it cannot be run: {source}")]
    Process {
        /// The system's word.
        source: std::io::Error,
    },
}

/// What the child is given.
#[derive(Serialize, Deserialize)]
struct Job<'a> {
    source: Cow<'a, str>,
    input: Cow<'a, TemplateInput>,
}

/// What the child says.
#[derive(Serialize, Deserialize)]
enum Answer {
    Prompt(String),
    Refused(String),
    Unread(String),
}

/// Renders `source` in a child that is `program`, started with [`ARGUMENT`].
///
/// # Errors
/// When the template refuses or fails, and when the child does not answer.
pub fn render(program: &Path, source: &str, input: &TemplateInput) -> Result<String, RenderError> {
    // Before anything of it is copied: it may be as long as the model file.
    if source.len() > TEMPLATE_BYTES_MAX {
        return Err(TextError::TemplateLength { len: source.len() }.into());
    }
    let job = Job { source: source.into(), input: Cow::Borrowed(input) };
    let wrong = |source| RenderError::Process { source };
    let job = serde_json::to_vec(&job).map_err(|e| wrong(e.into()))?;
    let mut child = Command::new(program)
        .arg(ARGUMENT)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(wrong)?;
    if let Some(mut pipe) = child.stdin.take() {
        // A child that is gone already says so by its status. It reads all before it writes anything.
        let _ = pipe.write_all(&job);
    }
    let mut answer = Vec::new();
    let read = match &mut child.stdout {
        Some(pipe) => pipe.take(ANSWER_BYTES_MAX as u64).read_to_end(&mut answer),
        None => Ok(0),
    };
    drop(child.stdout.take());
    let status = child.wait().map_err(wrong)?;
    read.map_err(wrong)?;
    if !status.success() {
        return Err(RenderError::Ended { status });
    }
    match serde_json::from_slice(&answer).map_err(|e| wrong(e.into()))? {
        Answer::Prompt(prompt) => Ok(prompt),
        Answer::Unread(names) => Err(TextError::Unread { names }.into()),
        Answer::Refused(what) => Err(RenderError::Refused { what }),
    }
}

/// Longest answer: each byte of the prompt escaped, and its mark.
const ANSWER_BYTES_MAX: usize = 6 * RENDERED_BYTES_MAX + MARKED_BYTES_MAX + 64;

/// The child's side: limits this process, reads a job from standard input, and writes the answer.
///
/// # Errors
/// When the limits cannot be set or the streams do not work.
pub fn serve() -> std::io::Result<()> {
    process::limit(RENDER_CPU_S, RENDER_MEMORY_BYTES)?;
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    let job: Job<'_> = serde_json::from_slice(&bytes)?;
    let answer = Template::new(&job.source).and_then(|template| template.render(&job.input));
    let answer = match answer {
        Ok(prompt) => Answer::Prompt(prompt),
        Err(TextError::Unread { names }) => Answer::Unread(names),
        Err(e) => Answer::Refused(e.to_string()),
    };
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &answer)?;
    out.flush()
}
