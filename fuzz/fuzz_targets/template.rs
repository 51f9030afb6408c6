//! A chat template, a NUL, and the text of a message. Any source is parsed; it is rendered here, in this process,
//! only where it has none of the means by which one instruction may take unbounded work. Those are why the daemon
//! renders in a child under the kernel's limits (`side/render.rs`); what they cost is no finding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sotto::text::{Chat, Json, Moment, Template, TemplateInput};

/// Values that grow from step to step, or are repeated.
const UNBOUNDED: &[&str] = &["namespace", "*", "+", "~", "macro", "recursive", "import", "include"];

fuzz_target!(|data: &[u8]| {
    let (source, text) = shared::pieces(data);
    let (Ok(source), text) = (std::str::from_utf8(source), String::from_utf8_lossy(text)) else { return };
    let Ok(template) = Template::new(source) else { return };
    if UNBOUNDED.iter().any(|word| source.contains(word)) {
        return;
    }
    let messages = [("system", "Be brief."), ("user", &*text), ("assistant", "")];
    for add_generation_prompt in [false, true] {
        let chat = Chat {
            messages: messages.iter().map(|(role, content)| Json::message(role, content)).collect(),
            variables: vec![("tools".into(), Json::null())],
            must_read: Vec::new(),
            add_generation_prompt,
            moment: Moment::from_unix(1_700_000_000),
        };
        let _ = template.render(&TemplateInput { chat, bos: "<s>".into(), eos: "</s>".into() });
    }
});
