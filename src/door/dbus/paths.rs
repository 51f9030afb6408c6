//! Paths of objects, and what stands at them.

use zbus::{ObjectPath, OwnedObjectPath};

/// Where the manager is; everything else lies below.
pub(super) const ROOT: &str = "/org/sotto/Sotto1";
/// Where the log is controlled.
pub(super) const LOG_CONTROL: &str = "/org/freedesktop/LogControl1";

/// A kind of objects below [`ROOT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Generation,
    Session,
    Job,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Model, Self::Generation, Self::Session, Self::Job];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Generation => "generation",
            Self::Session => "session",
            Self::Job => "job",
        }
    }
}

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'p> {
    /// A folder above the manager, or above the log control; the next part of the way.
    Above(&'static [&'static str]),
    Manager,
    LogControl,
    /// The folder of a kind of objects.
    Folder(Kind),
    /// An object, by the last part of its path.
    Object(Kind, &'p str),
}

/// What stands at `path`; `None`: nothing ever.
pub(super) fn place(path: &str) -> Option<Place<'_>> {
    match path {
        "/" => return Some(Place::Above(&["org"])),
        "/org" => return Some(Place::Above(&["freedesktop", "sotto"])),
        "/org/freedesktop" => return Some(Place::Above(&["LogControl1"])),
        "/org/sotto" => return Some(Place::Above(&["Sotto1"])),
        LOG_CONTROL => return Some(Place::LogControl),
        ROOT => return Some(Place::Manager),
        _ => {}
    }
    let below = path.strip_prefix(ROOT)?.strip_prefix('/')?;
    let (folder, rest) = match below.split_once('/') {
        Some((folder, rest)) => (folder, Some(rest)),
        None => (below, None),
    };
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == folder)?;
    match rest {
        None => Some(Place::Folder(kind)),
        Some(name) if !name.contains('/') => Some(Place::Object(kind, name)),
        Some(_) => None,
    }
}

/// The path of an object.
pub(super) fn object(kind: Kind, name: &str) -> OwnedObjectPath {
    let path = format!("{ROOT}/{}/{name}", kind.as_str());
    // Names are ids or escaped, so each is a part of a path.
    ObjectPath::try_from(path).map_or_else(|_| OwnedObjectPath::default(), OwnedObjectPath::from)
}

/// The path of the model `id`; of none, `/`.
pub(super) fn model(id: Option<&str>) -> OwnedObjectPath {
    id.map_or_else(OwnedObjectPath::default, |id| object(Kind::Model, &escaped(id)))
}

/// A model's id as the last part of its path: bytes but letters and digits as `_xx`.
pub(super) fn escaped(id: &str) -> String {
    let mut name = String::with_capacity(id.len());
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() {
            name.push(char::from(byte));
        } else {
            name += &format!("_{byte:02x}");
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_places() {
        for (path, wanted) in [
            ("/", Some(Place::Above(&["org"]))),
            ("/org/sotto/Sotto1", Some(Place::Manager)),
            ("/org/freedesktop/LogControl1", Some(Place::LogControl)),
            ("/org/sotto/Sotto1/model", Some(Place::Folder(Kind::Model))),
            ("/org/sotto/Sotto1/job/a1", Some(Place::Object(Kind::Job, "a1"))),
            ("/org/sotto/Sotto1/job/a1/b", None),
            ("/org/sotto/Sotto1/jobs", None),
            ("/org/sotto/Sotto12", None),
            ("/com", None),
        ] {
            assert_eq!(place(path), wanted, "{path}");
        }
        assert_eq!(model(Some("a-b.é")).as_str(), "/org/sotto/Sotto1/model/a_2db_2e_c3_a9");
        assert_eq!(model(None).as_str(), "/");
    }
}
