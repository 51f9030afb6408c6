//! Chat templates: the Jinja of `tokenizer.chat_template`, rendered as the transformers library does.
//!
//! Instructions, calls and output are bounded. What one instruction does is not: a value may double forty times or hold
//! itself, and comparing it takes for ever. Templates that come with a model file are therefore rendered in a process
//! of their own (`side::render`).

use std::fmt;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde::{Deserialize, Serialize};

use super::json::Json;
use super::special::MARK;
use super::{Moment, TextError, python};
use crate::base::limits::{MARKED_BYTES_MAX, RENDERED_BYTES_MAX, TEMPLATE_BYTES_MAX, TEMPLATE_DEPTH_MAX};
use crate::base::limits::{TEMPLATE_FUEL, TEMPLATE_MESSAGE_MAX};

/// A conversation, and whatever else the template is told of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Chat {
    /// The messages so far, oldest first: objects with `role`, `content` (a text, a list of parts, or none) and what
    /// else a template knows, such as `tool_calls`, `tool_call_id`, `name`, `reasoning_content`.
    pub messages: Vec<Json>,
    /// Further variables by name: `tools`, `documents`, `enable_thinking`. What is not here is undefined: a template is
    /// told nothing that the caller did not say.
    pub variables: Vec<(String, Json)>,
    /// Of these variables the template must read one, if any are named: what they ask for is asked in vain otherwise.
    pub must_read: Vec<String>,
    /// Whether the model is to answer next.
    pub add_generation_prompt: bool,
    /// What the template takes for now.
    pub moment: Moment,
}

impl Chat {
    /// The texts of the messages, for models without a template.
    #[must_use]
    pub fn contents(&self) -> Vec<String> {
        self.messages.iter().filter_map(|message| message.text("content")).collect()
    }
}

/// What a template is given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TemplateInput {
    /// The conversation.
    pub chat: Chat,
    /// Text of the token that begins a text, empty if there is none.
    pub bos: String,
    /// Text of the token that ends a text, empty if there is none.
    pub eos: String,
}

/// A parsed chat template.
pub struct Template {
    env: Environment<'static>,
}

const NAME: &str = "chat template";

impl Template {
    /// Parses the source.
    ///
    /// # Errors
    /// When it is too long or no Jinja.
    pub fn new(source: &str) -> Result<Self, TextError> {
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(TextError::TemplateLength { len: source.len() });
        }
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| described(&e))?);
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_fuel(Some(TEMPLATE_FUEL));
        env.set_recursion_limit(TEMPLATE_DEPTH_MAX);
        python::extend(&mut env);
        env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            let message = message.chars().take(TEMPLATE_MESSAGE_MAX).collect();
            Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
        });
        env.add_template_owned(NAME, without_generation(source)).map_err(|e| described(&e))?;
        Ok(Self { env })
    }

    /// The prompt that the template makes of a conversation.
    ///
    /// # Errors
    /// When the template refuses the messages or fails, or goes beyond the limits of work and length.
    pub fn render(&self, input: &TemplateInput) -> Result<String, TextError> {
        let TemplateInput { chat, bos, eos } = input;
        if !chat.must_read.is_empty() {
            let template = self.env.get_template(NAME).map_err(|e| described(&e))?;
            let read = template.undeclared_variables(false);
            if !chat.must_read.iter().any(|name| read.contains(name)) {
                return Err(TextError::Unread { names: chat.must_read.join(", ") });
            }
        }
        let moment = chat.moment;
        let variables = chat.variables.iter().map(|(name, value)| (name.as_str(), value.0.clone()));
        let ours = [
            ("messages", chat.messages.iter().map(|m| m.0.clone()).collect()),
            ("add_generation_prompt", chat.add_generation_prompt.into()),
            ("bos_token", bos.as_str().into()),
            ("eos_token", eos.as_str().into()),
            ("strftime_now", Value::from_function(move |format: &str| moment.format(format))),
        ];
        let source = self.env.get_template(NAME).map_err(|e| described(&e))?;
        self.render_value(Value::from_pairs(variables.chain(ours)))
            .map_err(|e| own_words(e, source.source(), &chat.contents()))
    }

    fn render_value(&self, context: Value) -> Result<String, TextError> {
        let template = self.env.get_template(NAME).map_err(|e| described(&e))?;
        let mut out = Bounded { bytes: Vec::new(), full: false };
        let rendered = template.render_captured_to(context, &mut out).map(drop);
        if out.full {
            return Err(TextError::RenderedLength);
        }
        rendered.map_err(|e| described(&e))?;
        let prompt = String::from_utf8_lossy(&out.bytes).into_owned();
        match prompt.len() - prompt.matches(MARK).count() * MARK.len_utf8() > RENDERED_BYTES_MAX {
            true => Err(TextError::RenderedLength),
            false => Ok(prompt),
        }
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template")
    }
}

/// The words of `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The engine's error as ours.
fn described(error: &Error) -> TextError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TextError::TemplateWork;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(Raised(message)) = e.downcast_ref() {
            return TextError::Raised { message: message.clone() };
        }
        cause = e.source();
    }
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let what = detail.chars().take(TEMPLATE_MESSAGE_MAX).collect();
    TextError::Template { line: error.line().unwrap_or(0), what }
}

/// The error without what its words quote of the conversation's texts `said`: where they do, as much of them from the
/// beginning on as stands in the template's `source`.
fn own_words(error: TextError, source: &str, said: &[String]) -> TextError {
    match error {
        TextError::Raised { message } if quotes(&message, source, said) => {
            let ends: Vec<usize> = message.char_indices().map(|(at, _)| at).collect();
            let n_own = ends.partition_point(|&end| source.contains(&message[..end]));
            let own = ends.get(n_own.saturating_sub(1)).map_or("", |&end| &message[..end]);
            TextError::Raised { message: format!("{own}\u{2026}") }
        }
        error => error,
    }
}

/// Whether `message` has a text of `said`, or a word of one that is none of the template's own.
fn quotes(message: &str, source: &str, said: &[String]) -> bool {
    let (message, source) = (message.to_lowercase(), source.to_lowercase());
    let own = |part: &str| source.contains(part) || !message.contains(part);
    said.iter().map(|text| text.to_lowercase()).any(|text| {
        let mut words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| word.chars().count() > 2);
        !own(text.trim()) || words.any(|word| !own(word))
    })
}

/// A prompt that grows up to its bound, with all marks.
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for &mut Bounded {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + more.len() > MARKED_BYTES_MAX {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The source with each `{% generation %}` block, which marks what to train on, as a block that is always taken.
fn without_generation(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inner = tag[..end].trim_matches(['-', '+']);
        let word = match inner.trim() {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&tag[..end].replace(inner.trim(), word));
        rest = &tag[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Json]) -> Result<String, TextError> {
        let chat = Chat {
            messages: messages.to_vec(),
            variables: vec![("tools".into(), Json::null())],
            must_read: Vec::new(),
            add_generation_prompt: true,
            moment: Moment::from_unix(1_773_500_966),
        };
        Template::new(source)?.render(&TemplateInput { chat, bos: "<s>".into(), eos: "</s>".into() })
    }

    #[test]
    fn renders_as_transformers_does() {
        let hi = [Json::message("user", " hi ")];
        let source = "{%- for m in messages %}\n  {% if true %}\n[{{ m['role'] }}] {{ m.content.strip() }}{{ eos_token }}\n  {% endif %}\n{% endfor %}\n\
            {{ strftime_now('%d %b %Y') }} {{ messages[0] | tojson }} {{ tools }} {{ missing }}|{{ missing is defined }}\n";
        let wanted = "[user] hi</s>\n14 Mar 2026 {\"role\": \"user\", \"content\": \" hi \"} None |False";
        assert_eq!(render(source, &hi).as_deref(), Ok(wanted));
        let trained = "a {%- generation -%} b {%- endgeneration %} c {% if x %}{% generation %}{% endgeneration %}{% endif %}";
        assert_eq!(render(trained, &[]).as_deref(), Ok("ab c "));
    }

    #[test]
    fn errors_name_line_and_cause() {
        let raised = render("{{ raise_exception('roles must alternate') }}", &[]);
        assert_eq!(raised, Err(TextError::Raised { message: "roles must alternate".to_owned() }));
        // What was said is not said again.
        let source = "{{ raise_exception('no such role: ' + messages[0].content + enable|default(' 7')) }}";
        for (said, told) in [
            ("a Secret", "no such role: \u{2026}"),
            ("\u{e9}", "no such role: \u{2026}"),
            ("role", "no such role: role 7"),
            ("", "no such role:  7"),
        ] {
            let raised = render(source, &[Json::message("user", said)]);
            assert_eq!(raised, Err(TextError::Raised { message: told.to_owned() }), "{said}");
        }
        let raised = render("{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}", &[]);
        assert_eq!(raised, Err(TextError::Raised { message: "deep".to_owned() }));
        for wrong in ["\n{% for %}", "\n{{ 1 + none }}", "\n{{ 'a' | nofilter }}", "\n{% generation"] {
            let error = render(wrong, &[]).expect_err("must fail");
            assert!(matches!(error, TextError::Template { line: 2, .. }), "{error}");
        }
    }

    #[test]
    fn what_is_asked_in_vain_is_refused() {
        let render = |source: &str, names: &[&str]| {
            let chat = Chat {
                messages: vec![Json::message("user", "enable_thinking")],
                variables: vec![("enable_thinking".into(), true.into())],
                must_read: names.iter().map(|&name| name.to_owned()).collect(),
                add_generation_prompt: true,
                moment: Moment::from_unix(0),
            };
            Template::new(source)?.render(&TemplateInput { chat, bos: String::new(), eos: String::new() })
        };
        let names = ["enable_thinking", "thinking"];
        let source = "{% if enable_thinking is defined and enable_thinking %}on{% endif %}";
        assert_eq!(render(source, &names).as_deref(), Ok("on"));
        let without = "enable_thinking {{ messages[0].thinking }}{{ 'thinking' }}";
        assert!(matches!(render(without, &names), Err(TextError::Unread { .. })));
        assert!(render(without, &[]).is_ok());
    }

    #[test]
    fn work_depth_and_length_are_bounded() {
        assert_eq!(
            render("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", &[]),
            Err(TextError::TemplateWork)
        );
        assert_eq!(
            render("{% for i in range(3000) %}{{ 'x' * 1000 }}{% endfor %}", &[]),
            Err(TextError::RenderedLength)
        );
        assert!(render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", &[]).is_err());
        assert!(render(&"{% if true %}".repeat(9999), &[]).is_err());
        assert_eq!(
            Template::new(&" ".repeat(1 << 19)).err(),
            Some(TextError::TemplateLength { len: 1 << 19 })
        );
    }
}
