//! Every bound of the program with its reason. A queue, map, string or nesting without a bound is a defect.

/// Most tensors in a model: in GGUF the largest have a few thousand, as safetensors with one for each expert 74,000.
pub const N_TENSOR_MAX: usize = 262_144;
/// Most files of a model: the largest open ones come in under 200, and each costs a map.
pub const N_PART_MAX: usize = 1_024;
/// Longest name of a file of a model: what Linux takes.
pub const FILE_NAME_BYTES_MAX: usize = 255;
/// Most metadata keys in a model file: converters write under a hundred.
pub const N_METADATA_MAX: usize = 65_536;
/// Longest name of a key or tensor in a model file: ggml itself stops at 64 for tensors, keys stay below 200.
pub const NAME_BYTES_MAX: usize = 65_535;
/// Most dimensions of a tensor (GGUF).
pub const N_DIM_MAX: usize = 4;
/// Most dimensions of a tensor that is skipped: image encoders have 5.
pub const N_DIM_SKIPPED_MAX: usize = 8;
/// Longest header of a safetensors file: the format's own bound.
pub const SAFETENSORS_HEADER_MAX: usize = 100_000_000;
/// Longest list of tensors and their files: the largest open models have 8 MB.
pub const SAFETENSORS_INDEX_MAX: usize = 64 << 20;
/// Deepest nesting of graphs in an ONNX graph: decoders of two graphs in one have 1.
pub const ONNX_DEPTH_MAX: usize = 4;
/// Most graphs in an ONNX graph: decoders of two graphs in one have 3, and each costs a list of its weights.
pub const N_ONNX_GRAPH_MAX: usize = 256;
/// Longest `config.json`, `generation_config.json` or `tokenizer_config.json`: the longest known has 600 KB.
pub const MODEL_CONFIG_BYTES_MAX: usize = 8 << 20;
/// Most values in a `config.json`: known ones have under 2,000. Bounds the memory of a file of brackets.
pub const N_MODEL_CONFIG_VALUE_MAX: usize = 65_536;
/// Longest `tokenizer.json` or `tokenizer.model`: Gemma's has 33 MB.
pub const TOKENIZER_BYTES_MAX: usize = 128 << 20;
/// Most tokens that end an answer: Llama 3.1 has 3.
pub const N_EOS_MAX: usize = 64;
/// Most experts of a block: the widest open model has 512.
pub const N_EXPERT_MAX: usize = 4_096;
/// Most layers of a decoder: the deepest open model has 126.
pub const N_LAYER_MAX: usize = 1_024;
/// Widest row of a matrix that the kernels take: above 66,000 an int32 block sum of Q8_0 could overflow when it
/// is carried over a whole row; the widest open model has 53,248.
pub const N_COLS_MAX: usize = 65_536;
/// Most GiB that the cache of packed models takes where nobody says otherwise: a dozen models of the size that small
/// machines run.
pub const PACK_CACHE_GIB: u64 = 16;
/// Widest head: the widest open model has 256; part of an attention block lives on the stack.
pub const HEAD_DIM_MAX: usize = 512;
/// Most query heads that share one key-value head: Falcon has 71; their sums live on the stack.
pub const N_GROUP_MAX: usize = 128;
/// Longest causal convolution: known ones have 3 or 4.
pub const CONV_LEN_MAX: usize = 64;
/// Largest vocabulary: Gemma has 262,144.
pub const N_VOCAB_MAX: usize = 1 << 20;
/// Largest context that can be asked for; also bounds positions to u32.
pub const N_CTX_MAX: usize = 1 << 24;
/// Rows of one prefill matrix product: activations of a chunk stay in the cache of a small core.
pub const PREFILL_CHUNK_MAX: usize = 128;
/// Sequences that share one step: beyond so many a small machine gains nothing, and the list lives on the stack.
pub const N_FEED_MAX: usize = 16;
/// Keys in one block of attention: blocks sit at absolute positions and merge in order, so that chunking and
/// threads never change a bit.
pub const ATTN_BLOCK: usize = 64;
/// Most worker threads: the boards have 4 to 8 cores, small PCs 16.
pub const N_THREADS_MAX: usize = 64;
/// Most choices of a request (openapi.yaml): each is a generation of its own, and half of what a step can take.
pub const N_CHOICE_MAX: usize = 8;
/// Most stop strings of a request (openapi.yaml).
pub const N_STOP_MAX: usize = 8;
/// Longest stop string: text that may begin one is held back, so it bounds the delay.
pub const STOP_BYTES_MAX: usize = 256;
/// Most tokens with a bias in a request (openapi.yaml).
pub const N_LOGIT_BIAS_MAX: usize = 1_024;
/// Most likely tokens that are told beside each drawn one (openapi.yaml): they fit a line of a pipe.
pub const N_TOP_LOGPROB_MAX: u32 = 20;
/// Bytes of a token's text in JSON, where it is told beside others: twenty fit a line of a pipe.
pub const TOP_TOKEN_BYTES_MAX: usize = 96;
/// Most tokens, drawn and likely ones, that an answer tells at once: 100 bytes each. A stream has no such bound.
pub const N_TOLD_MAX: usize = 131_072;
/// Most tokens back that penalties and DRY look: each draw goes over all of them.
pub const LAST_N_MAX: usize = 4_096;
/// Most texts that break repetitions, each of at most [`STOP_BYTES_MAX`] bytes: looked for in every token.
pub const N_BREAKER_MAX: usize = 16;
/// Longest text of a request, in bytes (D-Bus refuses longer inputs; a body on the socket has a limit of its own).
pub const INPUT_BYTES_MAX: usize = 1 << 20;
/// Texts of a call that are on their way to vectors together: what shares a step reads the weights once, and a uid's turn is
/// not longer for it.
pub const N_EMBED_TOGETHER: usize = 4;
/// Such texts that may wait in the engine, of all requests but the first text of each: there are so many only where a
/// thousand texts are embedded by hundreds of callers.
pub const N_PART_WAIT_MAX: usize = 1_024;
/// Most texts of one call for vectors on the socket (OpenAI's bound).
pub const N_EMBED_MAX: usize = 2_048;
/// Most texts of one call for vectors on the bus, where a call and its answer are a message each.
pub const N_EMBED_BUS_MAX: usize = 64;
/// Most numbers in an answer of vectors: all of [`N_EMBED_MAX`] from a model 1,024 wide, 8 MiB.
pub const EMBED_NUMBERS_MAX: usize = 2 << 20;
/// Largest text file that is measured: 50 times the usual ones. Its tokens cost 8 times its bytes while they are made.
pub const TEXT_FILE_BYTES_MAX: u64 = 64 << 20;
/// Longest line of an event stream with its newline: PIPE_BUF, the size up to which a pipe writes all or nothing.
pub const EVENT_BYTES_MAX: usize = 4_096;
/// Longest text that is read beside another one: some ten milliseconds of a slow board. Longer ones wait for each other.
pub const LONG_TEXT_BYTES: usize = 32 << 10;
/// Requests and texts waiting to be tokenized: a little more than the largest queue, so that the scheduler answers
/// `queue_full`.
pub const ADMIT_QUEUE_MAX: usize = 256;
/// Those of one uid: others still find room.
pub const ADMIT_QUEUE_PER_UID_MAX: usize = 64;
/// Longest control or user-defined token that is looked for in text: the longest known has 60 bytes.
pub const SPECIAL_BYTES_MAX: usize = 256;
/// Longest component of a `tokenizer.json` around its model: the longest known, a template with 256 tokens, has 30 KB.
pub const COMPONENT_BYTES_MAX: usize = 1 << 18;
/// Longest role of a chat message: templates know names such as `assistant`.
pub const ROLE_BYTES_MAX: usize = 32;
/// Largest source of a chat template: the longest known has 40 KB.
pub const TEMPLATE_BYTES_MAX: usize = 1 << 18;
/// Work of one rendering: about one unit for an instruction or 64 bytes of data, so also 64 MiB of memory. Known
/// templates take under 300 for a message.
pub const TEMPLATE_FUEL: u64 = 1 << 20;
/// Nested blocks and calls of a template while it renders: known ones nest under 10, the stack holds 500.
pub const TEMPLATE_DEPTH_MAX: usize = 100;
/// Nesting of a value that a template prints as JSON.
pub const TEMPLATE_JSON_DEPTH_MAX: usize = 32;
/// Widest indentation that a template may ask for in JSON.
pub const JSON_INDENT_MAX: usize = 16;
/// Processor seconds of one rendering, in its own process: known templates take under 5 ms, a slow board ten times that.
pub const RENDER_CPU_S: u64 = 2;
/// Address space of the process that renders: the program itself, the longest input, and [`TEMPLATE_FUEL`]'s memory.
pub const RENDER_MEMORY_BYTES: u64 = 512 << 20;
/// Longest rendered prompt, in bytes: the longest input and room for what a template puts around it.
pub const RENDERED_BYTES_MAX: usize = 2 * INPUT_BYTES_MAX;
/// The same while each character may have a mark of 3 bytes behind it (`text/special.rs`).
pub const MARKED_BYTES_MAX: usize = 4 * RENDERED_BYTES_MAX;
/// Longest message of a template that is passed on to the caller, in characters.
pub const TEMPLATE_MESSAGE_MAX: usize = 500;
/// Events that wait between the engine and a reader on the socket: a reader that keeps up never sees it full, and a
/// stopped one costs a page.
pub const EVENT_QUEUE_MAX: usize = 16;
/// Most headers of an HTTP request (API text, section 6).
pub const N_HEADER_MAX: usize = 100;
/// Deepest nesting of a request's JSON: tool schemas rarely pass 20; keeps recursion off the end of the stack.
pub const JSON_DEPTH_MAX: usize = 64;
/// Most values in a call on the bus: ten times those of a long conversation. One takes up to a kilobyte while it is read.
pub const N_BUS_VALUE_MAX: usize = 65_536;
/// Values of JSON that an object counts as, beside those in it: an empty one takes as much memory.
pub const JSON_OBJECT_VALUES: usize = 16;
/// Most values in a request's JSON: a prompt of token ids as long as the longest open context, twice. Bounds the
/// memory of a body of brackets, whose values are 16 times as large as its bytes.
pub const N_JSON_VALUE_MAX: usize = 262_144;
/// Characters of a text or name of a file that a message repeats: names of tensors have under 100.
pub const SHOWN_CHARS_MAX: usize = 120;
/// Longest path of a field that an error repeats: with the message it fits a line of a pipe.
pub const NAME_SHOWN_BYTES_MAX: usize = 160;
/// Longest message of an error on the wire: with its code it fits a line of a pipe, even where every byte is escaped.
pub const MESSAGE_BYTES_MAX: usize = 480;
/// Longest line of an event stream that the command line takes: 16 times what the daemon writes.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Largest answer that the command line takes at once: a list of models, an error.
pub const REPLY_BYTES_MAX: usize = 4 << 20;
/// Bus callers known at a time: each costs a match rule, of which a bus grants 512 to a connection.
pub const N_CALLER_MAX: usize = 128;
/// Calls on the bus that are answered at a time: a few callers with as many as the bus lets one have open. More wait there.
pub const N_CALL_MAX: usize = 1_024;
/// Generations of a uid that are kept on the bus after their end, the latest.
pub const KEPT_ENDED_MAX: usize = 64;
/// Bytes of their texts; the latest one is kept whatever it has.
pub const KEPT_TEXT_BYTES_MAX: usize = 1 << 20;
/// Largest configuration file: one with every key and its comment has 10 KB.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Most files of a configuration beside the first: one for each thing that a package or an administrator sets.
pub const N_CONFIG_FILE_MAX: usize = 64;
/// Most users whose requests in the last minute are remembered for `limits.*`; beyond, those that asked for least are
/// forgotten.
pub const N_RATED_UID_MAX: usize = 1_024;
/// Longest file in which the kernel tells of the machine: `memory.stat` of a large one has 4 KB, `meminfo` 2.
pub const READING_BYTES_MAX: usize = 64 << 10;
/// Most names of a folder of such files: threads of this process, devices of a bus, sensors.
pub const N_READING_MAX: usize = 1_024;
/// Most control groups above each other: services sit three or four deep, in containers ten.
pub const CGROUP_DEPTH_MAX: usize = 32;
/// Most trip points of a sensor: the kernel itself stopped at 12 for long.
pub const N_TRIP_MAX: usize = 16;
/// Percent of the memory there is that models may take where nobody says otherwise: the rest is the system's, and what
/// guesses are wrong by.
pub const MODELS_SHARE_PERCENT: u64 = 75;
