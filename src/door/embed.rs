//! Vectors of texts, for both doors: each text is a request of its own, a few are under way together.

use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep};

use crate::base::limits::{EMBED_NUMBERS_MAX, N_EMBED_TOGETHER};
use crate::engine::{
    Caching, Caller, Class, Code, Effort, Embedded, Engine, Event, Fault, Input, Request, Sampling, Task,
};

use super::fields::{Fields, invalid};
use super::id::new_id;
use super::queue::Generation;

/// What the daemon can do beside text, as clients ask for it.
pub(super) const FEATURES: [&str; 1] = ["embeddings"];
/// How long a text waits that found the queue full, before it is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// What is asked of all texts.
#[derive(Clone, Debug)]
pub(crate) struct Embed {
    /// Id or alias.
    pub(super) model: String,
    /// So many numbers of each vector, the first ones; `None`: all.
    pub(super) dimensions: Option<usize>,
    /// Vectors have the length 1.
    pub(super) normalize: bool,
    /// Texts that are longer than the model reads are cut, and told of.
    pub(super) truncate: bool,
    pub(super) class: Class,
    /// When all must be there.
    deadline: Option<Instant>,
}

/// The vectors of texts, in their order.
#[derive(Debug, Default)]
pub(crate) struct Vectors {
    /// The model that made them.
    pub(crate) model: String,
    pub(crate) vectors: Vec<Vec<f32>>,
    /// Tokens that were read for all.
    pub(crate) n_tokens: usize,
    /// Which texts were cut, from 0.
    pub(crate) truncated: Vec<usize>,
}

impl Embed {
    /// Of the default model, for somebody who waits.
    #[cfg(feature = "http")]
    pub(crate) fn new(dimensions: Option<usize>, truncate: bool) -> Self {
        Self {
            model: "default".to_owned(),
            dimensions,
            normalize: true,
            truncate,
            class: Class::Interactive,
            deadline: None,
        }
    }

    /// Takes `model` and `dimensions`; without a model it is the one that `embed` stands for.
    pub(super) fn take(fields: &mut Fields) -> Result<Self, Fault> {
        Ok(Self {
            model: fields.text("model")?.unwrap_or_else(|| "embed".to_owned()),
            dimensions: fields.whole("dimensions", 1, u64::from(u32::MAX))?.map(|n| n as usize),
            normalize: true,
            truncate: false,
            class: Class::Interactive,
            deadline: None,
        })
    }

    /// Takes `class`, `deadline_ms` and `truncate`.
    pub(super) fn take_service(&mut self, fields: &mut Fields) -> Result<(), Fault> {
        self.class = fields.class()?;
        self.truncate = fields.flag("truncate")?.unwrap_or(false);
        let ms = fields.whole("deadline_ms", 1, u64::from(u32::MAX))?;
        self.deadline = ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        Ok(())
    }

    /// The vectors of `inputs`; each came in the field that `field` gives. Dropping this cancels those under way.
    ///
    /// # Errors
    /// The first failure; `queue_full` only where no place was found for the first text.
    pub(crate) async fn run(
        self,
        engine: &Engine,
        caller: Caller,
        inputs: Vec<Input>,
        field: &'static str,
    ) -> Result<Vectors, Fault> {
        let n = inputs.len();
        let mut all = Vectors { vectors: vec![Vec::new(); n], ..Vectors::default() };
        let mut waiting = inputs.into_iter().enumerate();
        let mut under_way = JoinSet::new();
        let mut begin = |under_way: &mut JoinSet<_>| {
            if let Some((i, input)) = waiting.next() {
                let (engine, asked) = (engine.clone(), self.clone());
                under_way.spawn(async move { (i, asked.one(&engine, caller, input, field, i == 0).await) });
            }
        };
        (0..N_EMBED_TOGETHER).for_each(|_| begin(&mut under_way));
        while let Some(ended) = under_way.join_next().await {
            let ended =
                ended.map_err(|_| Fault::new(Code::Internal, "a text was left behind; look at the journal"));
            let (i, embedded) = ended?;
            // Which of several it is.
            let of_text = |mut fault: Fault| {
                let rest = fault.param.as_deref().and_then(|param| param.strip_prefix(field));
                if let Some(rest) = rest.filter(|_| n > 1) {
                    fault.param = Some(format!("{field}[{i}]{rest}"));
                }
                fault
            };
            let (Embedded { model, vector, prompt_tokens }, truncated) = embedded.map_err(of_text)?;
            let vector = self.cut(vector)?;
            if vector.len().saturating_mul(n) > EMBED_NUMBERS_MAX {
                let message = format!(
                    "{n} vectors of {} numbers were asked for, an answer has at most {EMBED_NUMBERS_MAX} numbers; send \
                     fewer texts at a time, or ask for fewer dimensions",
                    vector.len()
                );
                return Err(Fault::new(Code::BodyTooLarge, message).at(field));
            }
            (all.model, all.vectors[i]) = (model, vector);
            all.n_tokens += prompt_tokens;
            all.truncated.extend(truncated.then_some(i));
            begin(&mut under_way);
        }
        all.truncated.sort_unstable();
        Ok(all)
    }

    /// One vector, and whether its text was cut. Only the first text is refused where the queue is full; the others wait.
    async fn one(
        &self,
        engine: &Engine,
        caller: Caller,
        input: Input,
        field: &'static str,
        first: bool,
    ) -> Result<(Embedded, bool), Fault> {
        loop {
            let left = self.deadline.map(|at| at.saturating_duration_since(Instant::now()).as_millis());
            let request = Request {
                id: new_id(),
                caller,
                model: Some(self.model.clone()),
                task: Task::Embed { truncate: self.truncate },
                input: input.clone(),
                input_field: field,
                effort: Effort::None,
                sampling: Sampling::default(),
                max_tokens: None,
                stop: Vec::new(),
                cache: Caching::Off,
                class: self.class,
                deadline_ms: left.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            };
            match ended(Generation::part(engine, request, first)).await {
                Err(fault) if fault.code == Code::QueueFull && !first => sleep(AGAIN).await,
                ended => return ended,
            }
        }
    }

    /// The part of a vector that is asked for, at the length that is asked for.
    fn cut(&self, mut vector: Vec<f32>) -> Result<Vec<f32>, Fault> {
        if let Some(n) = self.dimensions {
            if n > vector.len() {
                let what =
                    format_args!("got {n}, allowed is 1 to the {} of the model", vector.len()).to_string();
                return Err(invalid("dimensions", what));
            }
            vector.truncate(n);
        }
        if self.normalize {
            let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            if length > 0.0 {
                vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
            }
        }
        Ok(vector)
    }
}

/// Waits for the end.
async fn ended(started: Result<Generation, Fault>) -> Result<(Embedded, bool), Fault> {
    let (mut generation, mut truncated) = (started?, false);
    loop {
        match generation.next().await {
            Event::Admitted(admitted) => truncated = admitted.truncated,
            Event::Embedded(embedded) => return Ok((embedded, truncated)),
            Event::Failed(fault) => return Err(fault),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_cut_and_have_the_length_one() {
        let embed = |dimensions, normalize| Embed {
            model: "embed".into(),
            dimensions,
            normalize,
            truncate: false,
            class: Class::Interactive,
            deadline: None,
        };
        let vector = vec![3.0, 4.0, 12.0];
        assert_eq!(embed(None, false).cut(vector.clone()).unwrap(), vector);
        assert_eq!(embed(Some(2), true).cut(vector.clone()).unwrap(), [0.6, 0.8]);
        assert_eq!(embed(None, true).cut(vec![0.0; 2]).unwrap(), [0.0; 2]);
        let fault = embed(Some(4), true).cut(vector).unwrap_err();
        assert!(
            fault.message.contains("got 4") && fault.message.contains("the 3 of the model"),
            "{}",
            fault.message
        );
    }
}
