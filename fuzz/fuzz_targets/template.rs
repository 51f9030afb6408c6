//! A chat template, a NUL, and the text of a message. Any source is parsed; it is rendered here, in this process,
//! only where it has none of the means by which one instruction may take unbounded work. Those are why the daemon
//! renders in a child under the kernel's limits (`side/render.rs`); what they cost is no finding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sotto::text::{ChatMessage, Moment, Template, TemplateInput};

/// Values that grow from step to step, or are repeated.
const UNBOUNDED: &[&str] = &["namespace", "*", "+", "~", "macro", "recursive", "import", "include"];

fuzz_target!(|data: &[u8]| {
    let (source, text) = shared::pieces(data);
    let (Ok(source), text) = (std::str::from_utf8(source), String::from_utf8_lossy(text)) else { return };
    let Ok(template) = Template::new(source) else { return };
    if UNBOUNDED.iter().any(|word| source.contains(word)) {
        return;
    }
    let moment = Moment::from_unix(1_700_000_000);
    let messages = [
        ChatMessage { role: "system", content: "Be brief." },
        ChatMessage { role: "user", content: &text },
        ChatMessage { role: "assistant", content: "" },
    ];
    for add_generation_prompt in [false, true] {
        let input = TemplateInput { messages: &messages, bos: "<s>", eos: "</s>", add_generation_prompt, moment };
        let _ = template.render(&input);
    }
});
