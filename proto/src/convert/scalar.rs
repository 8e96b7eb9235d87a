//! Values that are plain bytes, numbers or strings on the wire.

use bytes::Bytes;
use coracle_model::{
    ActivationId, BuildId, Concurrency, Digest, FunctionId, FunctionName, InstanceId, KeyId,
    KeyName, Memory, MilliCpu, NamespaceId, NamespaceName, NodeId, NodeName, ProjectId,
    ProjectName, RequestId, RuntimeName, SecretHash, TaskId, Timeout, TokenId, WriteId,
};
use uuid::Uuid;

use super::{ConvertError, parsed};

/// A model value whose wire form has no message of its own.
pub trait Wire: Sized {
    type Form;

    fn to_wire(&self) -> Self::Form;

    /// `field` is the name that an error carries.
    fn from_wire(field: &str, form: Self::Form) -> Result<Self, ConvertError>;
}

macro_rules! uuids {
    ($($name:ident)*) => {$(
        impl Wire for $name {
            type Form = Bytes;

            fn to_wire(&self) -> Bytes {
                Bytes::copy_from_slice(self.0.as_bytes())
            }

            fn from_wire(field: &str, form: Bytes) -> Result<Self, ConvertError> {
                Ok(Self(Uuid::from_bytes(exactly(field, &form)?)))
            }
        }
    )*};
}

uuids! {
    ActivationId BuildId FunctionId InstanceId KeyId NamespaceId NodeId RequestId TaskId TokenId
    WriteId
}

macro_rules! hashes {
    ($($name:ident)*) => {$(
        impl Wire for $name {
            type Form = Bytes;

            fn to_wire(&self) -> Bytes {
                Bytes::copy_from_slice(&self.0)
            }

            fn from_wire(field: &str, form: Bytes) -> Result<Self, ConvertError> {
                Ok(Self(exactly(field, &form)?))
            }
        }
    )*};
}

hashes! { Digest SecretHash }

pub(super) fn exactly<const N: usize>(field: &str, bytes: &[u8]) -> Result<[u8; N], ConvertError> {
    bytes.try_into().map_err(|_| match bytes.len() {
        0 => ConvertError::missing(field),
        len => ConvertError::new(field, format_args!("must be {N} bytes, is {len}")),
    })
}

macro_rules! strings {
    ($($name:ident)*) => {$(
        impl Wire for $name {
            type Form = String;

            fn to_wire(&self) -> String {
                self.as_str().to_owned()
            }

            fn from_wire(field: &str, form: String) -> Result<Self, ConvertError> {
                parsed(field, Self::try_from(form))
            }
        }
    )*};
}

strings! { FunctionName KeyName NamespaceName NodeName ProjectName RuntimeName }

macro_rules! quantities {
    ($($name:ident)*) => {$(
        impl Wire for $name {
            type Form = u32;

            fn to_wire(&self) -> u32 {
                u32::from(*self)
            }

            fn from_wire(field: &str, form: u32) -> Result<Self, ConvertError> {
                parsed(field, Self::try_from(form))
            }
        }
    )*};
}

quantities! { Concurrency Memory MilliCpu Timeout }

impl Wire for ProjectId {
    type Form = u32;

    fn to_wire(&self) -> u32 {
        self.0
    }

    fn from_wire(field: &str, form: u32) -> Result<Self, ConvertError> {
        if form == 0 {
            return Err(ConvertError::missing(field));
        }
        Ok(Self(form))
    }
}

/// Optional fields: absent stays absent, present must be valid.
impl<T: Wire> Wire for Option<T> {
    type Form = Option<T::Form>;

    fn to_wire(&self) -> Self::Form {
        self.as_ref().map(T::to_wire)
    }

    fn from_wire(field: &str, form: Self::Form) -> Result<Self, ConvertError> {
        form.map(|form| T::from_wire(field, form)).transpose()
    }
}

/// Lists; the path of an error holds the index.
impl<T: Wire> Wire for Vec<T> {
    type Form = Vec<T::Form>;

    fn to_wire(&self) -> Self::Form {
        self.iter().map(T::to_wire).collect()
    }

    fn from_wire(field: &str, form: Self::Form) -> Result<Self, ConvertError> {
        let convert = |(index, item)| T::from_wire(&format!("{field}[{index}]"), item);
        form.into_iter().enumerate().map(convert).collect()
    }
}
