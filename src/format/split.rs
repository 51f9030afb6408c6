//! GGUF in several files (llama.cpp, `gguf-split`): each is a GGUF file with its number, the first has the metadata
//! of the model, and their names end in `-00001-of-0000N.gguf`.

use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Checkpoint, FormatError, gguf};
use crate::base::limits::N_PART_MAX;
use crate::base::shown;
use crate::os::map::{Map, MapError};

/// Number of this file from 0 on.
const NUMBER: &str = "split.no";
/// Number of files.
const COUNT: &str = "split.count";
/// Tensors in all files.
const N_TENSORS: &str = "split.tensors.count";

/// Opens the file `path`, which is `map`, and those that belong to it.
pub(super) fn open(path: &Path, map: Arc<Map>) -> Result<Checkpoint, FormatError> {
    let one = parse(path, map)?;
    let Some(count) = one.uint(COUNT)?.filter(|n| *n > 1) else { return Ok(one) };
    let set = |why: String| FormatError::Set { file: one.file.clone(), why };
    if count > N_PART_MAX as u64 {
        return Err(set(format!("{COUNT} is {count}, at most {N_PART_MAX} files are possible")));
    }
    let number = one.require(NUMBER, one.uint(NUMBER)?)?;
    let ending = |i: u64| format!("-{:05}-of-{count:05}.gguf", i.saturating_add(1));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(stem) = name.strip_suffix(&ending(number)) else {
        return Err(set(format!(
            "is number {} of {count} files of a model, so its name must end in {}, or the others cannot be found",
            number.saturating_add(1),
            ending(number)
        )));
    };
    let mut files = Vec::new();
    for i in 0..count {
        let sibling = path.with_file_name(format!("{stem}{}", ending(i)));
        if i == number {
            continue;
        }
        let map = Map::open(&sibling).map_err(|e| match e {
            MapError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                FormatError::Set {
                    file: sibling.display().to_string(),
                    why: format!("is missing, number {} of {count} files of a model", i.saturating_add(1)),
                }
            }
            other => other.into(),
        })?;
        files.push(parse(&sibling, Arc::new(map))?);
    }
    let at = usize::try_from(number).unwrap_or(0).min(files.len());
    files.insert(at, one);
    join(files)
}

/// The files that belong together by the name of one of them; that one alone where the name does not say.
pub(super) fn set_of(path: &Path) -> Vec<PathBuf> {
    let stem = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".gguf"));
    let number = |s: &str| (s.len() == 5).then(|| s.parse::<usize>().ok()).flatten();
    let of_set = stem.and_then(|stem| {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, _) = rest.rsplit_once('-').filter(|(_, no)| number(no).is_some())?;
        Some((name, count, number(count).filter(|n| (2..=N_PART_MAX).contains(n))?))
    });
    match of_set {
        None => vec![path.to_owned()],
        Some((name, count, n)) => {
            (1..=n).map(|i| path.with_file_name(format!("{name}-{i:05}-of-{count}.gguf"))).collect()
        }
    }
}

fn parse(path: &Path, map: Arc<Map>) -> Result<Checkpoint, FormatError> {
    let checkpoint = gguf::parse(&path.display().to_string(), map.clone())?;
    Ok(Checkpoint { maps: vec![Some(map)], ..checkpoint })
}

/// Makes one checkpoint of files in their order. The first one's metadata counts.
///
/// # Errors
/// When they are not all the files of one model, each once.
pub fn join(files: Vec<Checkpoint>) -> Result<Checkpoint, FormatError> {
    let count = files.len() as u64;
    let mut files = files.into_iter();
    let Some(mut all) = files.next() else {
        return Err(FormatError::Set { file: String::new(), why: "no file was given".into() });
    };
    let said = |c: &Checkpoint| Ok::<_, FormatError>((c.uint(COUNT)?, c.uint(NUMBER)?, c.uint(N_TENSORS)?));
    let (_, _, n_tensors) = said(&all)?;
    check(&all, (Some(count), Some(0), n_tensors))?;
    for (i, file) in (1_u64..).zip(files) {
        check(&file, (Some(count), Some(i), n_tensors))?;
        let architecture = "general.architecture";
        if let Some(other) = file.str(architecture)?
            && Some(other) != all.str(architecture)?
        {
            let why =
                format!("{architecture} is {}, that of {} is another", shown(other.as_bytes()), all.file);
            return Err(FormatError::Set { file: file.file.clone(), why });
        }
        let part = all.parts.len();
        for (name, mut info) in file.tensors {
            info.part = part;
            match all.tensors.entry(name) {
                Entry::Vacant(place) => {
                    place.insert(info);
                }
                Entry::Occupied(place) => {
                    let what = format!("tensor {} (in an earlier file of the model too)", place.key());
                    return Err(FormatError::Duplicate { file: file.file, what });
                }
            }
        }
        all.parts.extend(file.parts);
        all.maps.extend(file.maps);
    }
    let found = all.tensors.len() as u64;
    match n_tensors {
        Some(n) if n != found => {
            let why = format!("{N_TENSORS} is {n}, the {count} files hold {found} tensors");
            Err(FormatError::Set { file: all.file, why })
        }
        _ => Ok(all),
    }
}

/// A file's own word about the set.
fn check(file: &Checkpoint, wanted: (Option<u64>, Option<u64>, Option<u64>)) -> Result<(), FormatError> {
    for (key, wanted) in [(COUNT, wanted.0), (NUMBER, wanted.1), (N_TENSORS, wanted.2)] {
        let found = file.uint(key)?;
        if found != wanted {
            let show = |n: Option<u64>| n.map_or("absent".to_owned(), |n| n.to_string());
            let why = format!("{key} is {}, {} wanted for its place in the set", show(found), show(wanted));
            return Err(FormatError::Set { file: file.file.clone(), why });
        }
    }
    Ok(())
}
