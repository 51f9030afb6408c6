//! Model files: what a directory becomes against GGUF's converter, models in several files, and bad files.

mod translation;
