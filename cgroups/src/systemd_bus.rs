//! Speaking to systemd over D-Bus.
//!
//! Each conversation has its own connection, driven by the calling thread alone: nothing runs in
//! the background, and nothing is left open.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream;
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath, Variant};

use crate::error::{Error, Result};
use crate::systemd_properties::PropertyValue;

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// An open conversation.
pub(crate) struct Bus {
    connection: Connection,
}

/// What is asked of systemd, for its errors.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) operation: &'static str,
    pub(crate) unit: &'a str,
}

/// Runs a conversation to its end, or to the end of our patience.
pub(crate) fn converse<T>(
    addresses: &[String],
    request: Request<'_>,
    patience: Duration,
    conversation: impl AsyncFnOnce(&Bus) -> Result<T>,
) -> Result<T> {
    zbus::block_on(async {
        let runtime = zruntime::SharedRuntime::current().map_err(|source| Error::Io {
            operation: "speak to systemd about",
            path: PathBuf::from(request.unit),
            source,
        })?;
        let whole = async {
            let bus = Bus::connect(addresses).await?;
            let result = conversation(&bus).await;
            // The answer is there; that the connection would not close in order changes nothing.
            let _ = bus.connection.close().await;
            result
        };
        let answer = runtime.timeout(patience, Box::pin(whole)).await;
        answer.unwrap_or_else(|_| {
            Err(Error::Timeout {
                what: "answered for by systemd",
                group: PathBuf::from(request.unit),
                after: patience,
            })
        })
    })
}

impl Bus {
    async fn connect(addresses: &[String]) -> Result<Self> {
        let mut failure = Error::NoSystemd {
            address: "any address".to_owned(),
            source: "neither XDG_RUNTIME_DIR nor DBUS_SESSION_BUS_ADDRESS is set".into(),
        };
        for address in addresses {
            match zbus::connection::Builder::address(address.as_str())
                .build()
                .await
            {
                Ok(connection) => {
                    return Ok(Self { connection });
                }
                Err(error) => {
                    failure = Error::NoSystemd {
                        address: address.clone(),
                        source: error.into(),
                    };
                }
            }
        }
        Err(failure)
    }

    async fn call<B>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> zbus::Result<Message>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        self.connection
            .call_method(Some(SERVICE), path, Some(interface), method, body)
            .await
    }

    /// Calls a method of the manager.
    pub(crate) async fn manager<B>(
        &self,
        request: Request<'_>,
        method: &str,
        body: &B,
    ) -> Result<Message>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        self.call(PATH, MANAGER, method, body)
            .await
            .map_err(|error| explain(request, &error))
    }

    /// Calls a method of the manager that queues a job, and waits for the job.
    pub(crate) async fn job<B>(&self, request: Request<'_>, method: &str, body: &B) -> Result<()>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let failed = |error| explain(request, &error);
        // Listening begins before the job does, so its end cannot be missed.
        self.manager(request, "Subscribe", &()).await?;
        let ends = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(SERVICE)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()
            .map_err(failed)?;
        let mut ends = MessageStream::for_match_rule(ends, &self.connection, None)
            .await
            .map_err(failed)?;
        let answer = self.manager(request, method, body).await?;
        let job: OwnedObjectPath = answer.body().deserialize().map_err(failed)?;
        loop {
            let next = std::future::poll_fn(|context| Pin::new(&mut ends).poll_next(context)).await;
            let Some(message) = next else {
                return Err(failed(zbus::Error::InputOutput(
                    io::Error::from(io::ErrorKind::ConnectionAborted).into(),
                )));
            };
            let message = message.map_err(failed)?;
            let (_, ended, _, result): (u32, OwnedObjectPath, String, String) =
                message.body().deserialize().map_err(failed)?;
            if ended != job {
                continue;
            }
            return if result == "done" {
                Ok(())
            } else {
                Err(Error::UnitJob {
                    operation: request.operation,
                    unit: request.unit.to_owned(),
                    result,
                })
            };
        }
    }

    /// Reads a property that is a text.
    pub(crate) async fn text_property(
        &self,
        request: Request<'_>,
        path: &str,
        interface: &str,
        name: &str,
    ) -> Result<String> {
        let failed = |error| explain(request, &error);
        let answer = self
            .call(
                path,
                "org.freedesktop.DBus.Properties",
                "Get",
                &(interface, name),
            )
            .await
            .map_err(failed)?;
        let body = answer.body();
        match body.deserialize().map_err(failed)? {
            Variant::Str(text) => Ok(text.as_str().to_owned()),
            _ => Err(failed(zbus::Error::IncorrectType)),
        }
    }
}

/// The same in the words of this crate, if it has them.
fn explain(request: Request<'_>, error: &zbus::Error) -> Error {
    let Request { operation, unit } = request;
    let (name, message) = match error {
        zbus::Error::MethodError(name, message, _) => {
            (name.to_string(), message.clone().unwrap_or_default())
        }
        zbus::Error::FDO(error) => {
            use zbus::DBusError as _;
            let message = error.description().unwrap_or_default().to_owned();
            (error.name().to_string(), message)
        }
        other => {
            return Error::UnitRefused {
                operation,
                unit: unit.to_owned(),
                name: "not its own error".to_owned(),
                message: other.to_string(),
            };
        }
    };
    let group = PathBuf::from(unit);
    match name.as_str() {
        "org.freedesktop.systemd1.UnitExists" => Error::AlreadyExists { group },
        "org.freedesktop.systemd1.NoSuchUnit" | "org.freedesktop.systemd1.NoUnitForPID" => {
            Error::NotFound { group }
        }
        "org.freedesktop.DBus.Error.AccessDenied"
        | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => Error::NotDelegated {
            path: group,
            source: io::Error::new(io::ErrorKind::PermissionDenied, message),
        },
        _ => Error::UnitRefused {
            operation,
            unit: unit.to_owned(),
            name,
            message,
        },
    }
}

/// Properties as D-Bus has them.
pub(crate) fn to_dbus(properties: Vec<(&str, PropertyValue)>) -> Vec<(&str, Variant<'static>)> {
    let value = |value| match value {
        PropertyValue::Bool(value) => value.into(),
        PropertyValue::I32(value) => value.into(),
        PropertyValue::U32(value) => value.into(),
        PropertyValue::U64(value) => value.into(),
        PropertyValue::String(value) => value.into(),
        PropertyValue::Strings(values) => values.into(),
        PropertyValue::U32s(values) => values.into(),
        PropertyValue::Bytes(values) => values.into(),
        PropertyValue::Devices(values) => values.into(),
    };
    properties
        .into_iter()
        .map(|(name, v)| (name, value(v)))
        .collect()
}
