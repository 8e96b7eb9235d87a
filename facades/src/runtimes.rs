//! From a requested runtime to an installed one, in the words of an API's error.

use std::collections::BTreeMap;

use coracle_model::{Invalid, RuntimeName, limits};
use coracle_runtimes::{Catalog, Strictness};

/// That another version stands in is said in the build message, by whoever builds.
pub(crate) fn resolve(catalog: &Catalog, requested: &str) -> Result<RuntimeName, Invalid> {
    // The text is kept for echoing, so its length has to be bounded before it is looked up.
    crate::api::check_chars("runtime", requested, 1, limits::NAME_MAX)?;
    let resolved = catalog.resolve(requested, Strictness::NearestNewer);
    resolved
        .map(|resolved| resolved.runtime.name)
        .map_err(|unknown| Invalid::new("runtime", unknown))
}

pub(crate) fn by_language(catalog: &Catalog) -> BTreeMap<String, Vec<String>> {
    let mut languages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for runtime in catalog.runtimes() {
        languages
            .entry(runtime.language.clone())
            .or_default()
            .push(runtime.name.to_string());
    }
    languages
}
