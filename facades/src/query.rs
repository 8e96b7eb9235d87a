//! Query parameters, and the paging of lists.

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use coracle_model::Timestamp;

use crate::failure::Failure;

/// The query as pairs, in the order given.
#[derive(Debug, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(pairs)| Self(pairs))
            .map_err(|_| Failure::invalid("query", "is not a valid query string"))
    }
}

impl Params {
    /// The last one given wins. A parameter without a value counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    pub(crate) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn integer(
        &self,
        name: &str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, Failure> {
        let Some(text) = self.get(name) else {
            return Ok(default);
        };
        let parsed = text.parse().ok().filter(|value| range.contains(value));
        parsed.ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            let shown: String = text.chars().take(40).collect();
            Failure::invalid(
                name,
                format_args!("must be an integer from {low} to {high}, is {shown:?}"),
            )
        })
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some("true" | "True" | "1") => Ok(Some(true)),
            Some("false" | "False" | "0") => Ok(Some(false)),
            Some(_) => Err(Failure::invalid(name, "must be true or false")),
        }
    }

    pub(crate) fn time(&self, name: &str) -> Result<Option<Timestamp>, Failure> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        Ok(Some(Timestamp::parse_rfc3339(name, text)?))
    }

    /// A misspelt filter would otherwise answer as if it had been applied.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Failure> {
        match self
            .0
            .iter()
            .find(|(key, _)| !known.contains(&key.as_str()))
        {
            None => Ok(()),
            Some((key, _)) => {
                let shown: String = key.chars().take(40).collect();
                Err(Failure::invalid(
                    shown,
                    format_args!(
                        "is not a parameter of this route; these are: {}",
                        known.join(", ")
                    ),
                ))
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrderKey {
    Name,
    CreatedAt,
    Expire,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) by: OrderKey,
    pub(crate) descending: bool,
}

/// What a list orders and searches by.
pub(crate) trait Listed {
    fn name(&self) -> &str;
    fn created_at(&self) -> Timestamp;
    /// For keys: those that never expire come after all that do.
    fn expires_at(&self) -> Option<Timestamp> {
        None
    }
}

/// Which part of a list, in which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) limit: usize,
    pub(crate) offset: usize,
    pub(crate) order: Order,
    pub(crate) search: Option<String>,
}

/// Gcore's; the native API has taken it over.
const LIMIT_MAX: u64 = 1_000;

impl Page {
    pub(crate) const PARAMS: [&str; 4] = ["limit", "offset", "order_by", "search"];

    /// `name_max`: the longest name that the API knows, and so the longest part of one.
    pub(crate) fn parse(
        params: &Params,
        default: Order,
        keys: &[OrderKey],
        name_max: usize,
    ) -> Result<Self, Failure> {
        let search = params.get("search").map(str::to_owned);
        let fit = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if search
            .as_ref()
            .is_some_and(|s| s.len() > name_max || !s.bytes().all(fit))
        {
            return Err(Failure::invalid(
                "search",
                format_args!("must be 1 to {name_max} characters of a-z, 0-9 and '-'"),
            ));
        }
        let limit = params.integer("limit", LIMIT_MAX, 1..=LIMIT_MAX)?;
        let offset = params.integer("offset", 0, 0..=u64::from(u32::MAX))?;
        Ok(Self {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            offset: usize::try_from(offset).unwrap_or(usize::MAX),
            order: parse_order(params, default, keys)?,
            search,
        })
    }

    /// How many match in all, and those of this page.
    pub(crate) fn apply<T: Listed>(&self, mut items: Vec<T>) -> (usize, Vec<T>) {
        if let Some(search) = &self.search {
            items.retain(|item| item.name().contains(search.as_str()));
        }
        items.sort_by(|a, b| {
            let by_name = || a.name().cmp(b.name());
            let ordering = match self.order.by {
                OrderKey::Name => by_name(),
                OrderKey::CreatedAt => a.created_at().cmp(&b.created_at()).then_with(by_name),
                OrderKey::Expire => {
                    let at = |item: &T| item.expires_at().unwrap_or(Timestamp(u64::MAX));
                    at(a).cmp(&at(b)).then_with(by_name)
                }
            };
            if self.order.descending {
                ordering.reverse()
            } else {
                ordering
            }
        });
        let count = items.len();
        (
            count,
            items
                .into_iter()
                .skip(self.offset)
                .take(self.limit)
                .collect(),
        )
    }
}

fn parse_order(params: &Params, default: Order, keys: &[OrderKey]) -> Result<Order, Failure> {
    let Some(text) = params.get("order_by") else {
        return Ok(default);
    };
    let word = |key: &OrderKey| match key {
        OrderKey::Name => "name",
        OrderKey::CreatedAt => "created_at",
        OrderKey::Expire => "expire",
    };
    let parsed = text.rsplit_once('.').and_then(|(name, direction)| {
        let by = *keys.iter().find(|key| word(key) == name)?;
        let descending = match direction {
            "asc" => false,
            "desc" => true,
            _ => return None,
        };
        Some(Order { by, descending })
    });
    parsed.ok_or_else(|| {
        let names: Vec<_> = keys
            .iter()
            .map(|key| format!("{0}.asc, {0}.desc", word(key)))
            .collect();
        Failure::invalid(
            "order_by",
            format_args!("must be one of {}", names.join(", ")),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Item(&'static str, u64);

    impl Listed for Item {
        fn name(&self) -> &str {
            self.0
        }
        fn created_at(&self) -> Timestamp {
            Timestamp(self.1)
        }
    }

    const NEWEST: Order = Order {
        by: OrderKey::CreatedAt,
        descending: true,
    };

    fn check(pairs: &[(&str, &str)], expected: (usize, &[&str])) {
        let params = Params(
            pairs
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
        );
        let page = Page::parse(&params, NEWEST, &[OrderKey::Name, OrderKey::CreatedAt], 26)
            .expect("a good page");
        let (count, items) = page.apply(vec![Item("ab", 1), Item("b", 3), Item("a", 2)]);
        let names: Vec<_> = items.iter().map(|item| item.0).collect();
        assert_eq!((count, names.as_slice()), expected, "{pairs:?}");
    }

    #[test]
    fn pages() {
        check(&[], (3, &["b", "a", "ab"]));
        check(&[("order_by", "name.asc")], (3, &["a", "ab", "b"]));
        check(
            &[("order_by", "name.desc"), ("limit", "1"), ("offset", "1")],
            (3, &["ab"]),
        );
        check(&[("search", "a")], (2, &["a", "ab"]));
        check(&[("offset", "9")], (3, &[]));
    }

    #[test]
    fn bad_pages_name_the_parameter() {
        for (name, value) in [
            ("limit", "0"),
            ("limit", "1001"),
            ("limit", "-1"),
            ("limit", "x"),
            ("offset", "-1"),
            ("order_by", "name"),
            ("order_by", "expire.asc"),
            ("order_by", "name.up"),
            ("search", "A"),
            ("search", "aaaaaaaaaaaaaaaaaaaaaaaaaaa"),
        ] {
            let params = Params(vec![(name.into(), value.into())]);
            let error = Page::parse(&params, NEWEST, &[OrderKey::Name], 26).expect_err(value);
            assert_eq!(error.field.as_deref(), Some(name));
        }
    }
}
