//! One failure, one name at each door (API text, section 3).

use serde_json::Value;

use crate::base::limits::{MESSAGE_BYTES_MAX, NAME_SHOWN_BYTES_MAX};
use crate::engine::{Code, Fault};

use super::done;
use super::id::cut;

/// The fields of the event `error`, short enough for a line of a pipe.
pub(super) fn fields(fault: &Fault) -> Value {
    done::error_fields(&Fault {
        message: cut(&fault.message, MESSAGE_BYTES_MAX),
        param: fault.param.as_deref().map(|p| cut(p, NAME_SHOWN_BYTES_MAX)),
        ..fault.clone()
    })
}

/// HTTP status of a failure that is answered before the first byte of an answer.
#[cfg(feature = "http")]
pub(super) fn http_status(code: Code) -> u16 {
    match code {
        Code::NotAuthorized => 403,
        Code::UnknownModel | Code::UnknownObject | Code::UnknownRoute => 404,
        Code::MethodNotAllowed => 405,
        Code::RequestTimeout => 408,
        Code::ModelBusy | Code::SessionBusy => 409,
        Code::BodyTooLarge => 413,
        Code::QueueFull | Code::RateLimited => 429,
        Code::HeaderTooLarge => 431,
        Code::Cancelled | Code::Stalled => 499,
        Code::Internal => 500,
        Code::InsufficientMemory
        | Code::ShuttingDown
        | Code::LoadFailed
        | Code::UnsupportedModel
        | Code::DamagedModel
        | Code::NotReady => 503,
        Code::DeadlineExceeded => 504,
        _ => 400,
    }
}

/// The `type` that the OpenAI shape gives a status.
#[cfg(feature = "http")]
pub(super) fn http_type(status: u16) -> &'static str {
    match status {
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

/// D-Bus error name of a failure.
#[cfg(feature = "dbus")]
pub(super) fn dbus_name(code: Code) -> &'static str {
    match code {
        Code::InvalidJson | Code::InvalidValue | Code::MissingField => {
            "org.freedesktop.DBus.Error.InvalidArgs"
        }
        Code::UnsupportedField => "org.freedesktop.DBus.Error.NotSupported",
        Code::NotAuthorized => "org.freedesktop.DBus.Error.AccessDenied",
        Code::UnknownObject => "org.freedesktop.DBus.Error.UnknownObject",
        Code::UnknownField => "org.sotto.Error.UnknownOption",
        Code::InvalidSchema => "org.sotto.Error.InvalidSchema",
        Code::ContextTooLong => "org.sotto.Error.ContextTooLong",
        Code::UnknownModel => "org.sotto.Error.UnknownModel",
        Code::BodyTooLarge => "org.sotto.Error.TooLarge",
        Code::ModelBusy => "org.sotto.Error.ModelBusy",
        Code::SessionBusy => "org.sotto.Error.SessionBusy",
        Code::QueueFull => "org.sotto.Error.QueueFull",
        Code::RateLimited => "org.sotto.Error.RateLimited",
        Code::InsufficientMemory => "org.sotto.Error.InsufficientMemory",
        Code::ShuttingDown => "org.sotto.Error.ShuttingDown",
        Code::LoadFailed => "org.sotto.Error.LoadFailed",
        Code::UnsupportedModel => "org.sotto.Error.UnsupportedModel",
        Code::DamagedModel => "org.sotto.Error.DamagedModel",
        Code::DeadlineExceeded => "org.sotto.Error.DeadlineExceeded",
        Code::Cancelled => "org.sotto.Error.Cancelled",
        Code::Stalled => "org.sotto.Error.Stalled",
        Code::InvalidConfig => "org.sotto.Error.InvalidConfig",
        _ => "org.sotto.Error.Internal",
    }
}
