//! Our types as Postgres sees them.

use std::{error::Error, time::SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use super::copy::micros;
use crate::model::{AccountId, EventId, Timestamp, Trace, WebhookId};

/// Bytes that are known to be UTF-8 without NUL, sent as `text` without a copy into a `String`.
#[derive(Debug)]
pub struct Text(pub Bytes);

impl ToSql for Text {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    accepts!(TEXT);
    to_sql_checked!();
}

/// Likewise, of bytes that somebody else holds.
#[derive(Debug)]
pub(super) struct Utf8<'a>(pub(super) &'a [u8]);

impl ToSql for Utf8<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_slice(self.0);
        Ok(IsNull::No)
    }

    accepts!(TEXT);
    to_sql_checked!();
}

impl FromSql<'_> for Text {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Text, Box<dyn Error + Sync + Send>> {
        Ok(Text(Bytes::copy_from_slice(raw)))
    }

    accepts!(TEXT);
}

impl ToSql for Trace {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_slice(&self.stored());
        Ok(IsNull::No)
    }

    accepts!(BYTEA);
    to_sql_checked!();
}

impl ToSql for Timestamp {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_i64(micros(*self));
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl FromSql<'_> for Timestamp {
    fn from_sql(kind: &Type, raw: &[u8]) -> Result<Timestamp, Box<dyn Error + Sync + Send>> {
        SystemTime::from_sql(kind, raw).map(Timestamp::from)
    }

    accepts!(TIMESTAMPTZ);
}

macro_rules! id {
    ($name:ident) => {
        impl FromSql<'_> for $name {
            fn from_sql(kind: &Type, raw: &[u8]) -> Result<$name, Box<dyn Error + Sync + Send>> {
                i64::from_sql(kind, raw).map($name)
            }

            accepts!(INT8);
        }

        impl ToSql for $name {
            fn to_sql(
                &self,
                kind: &Type,
                out: &mut BytesMut,
            ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
                self.0.to_sql(kind, out)
            }

            accepts!(INT8);
            to_sql_checked!();
        }
    };
}

id!(EventId);
id!(WebhookId);
id!(AccountId);
