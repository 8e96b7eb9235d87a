//! Function keys, and the one relation between keys and functions.
//!
//! The relation is stored in `FunctionKey::functions`; `View::bindings` is the same, read backwards.
//! [`Change::bind`] and [`Change::unbind`] are the only places that touch either.

use std::collections::BTreeSet;

use coracle_model::{
    FunctionId, FunctionKey, FunctionRef, Invalid, KeyId, KeyName, ProjectId, Refusal, limits,
    operation::{CreateKey, UpdateKey},
};

use super::{Change, checks};
use crate::Effect;

/// A function by name and by id.
type Bound = (FunctionRef, FunctionId);

impl Change<'_> {
    pub(super) fn create_key(&mut self, create: CreateKey) -> Result<(), Refusal> {
        let CreateKey {
            id,
            project,
            name,
            description,
            hash,
            functions,
            expires_at,
        } = create;
        self.project(project)?;
        checks::description(&description)?;
        if self.state.view.key_named(project, &name).is_some() {
            return Err(Refusal::AlreadyExists(checks::key_named(&name)));
        }
        if self.state.view.keys.contains(&id) {
            return Err(Refusal::AlreadyExists(format!("a key with the id {id}")));
        }
        let functions = self.functions_for_key(project, &name, functions)?;
        let key = FunctionKey {
            id,
            project,
            name: name.clone(),
            description,
            hash,
            functions: Vec::new(),
            expires_at,
            created_at: self.at,
        };
        self.state.view.keys.insert(id, key);
        self.state.view.key_names.insert((project, name), id);
        self.emit(Effect::KeyChanged(id));
        for function in functions {
            self.bind(id, function);
        }
        Ok(())
    }

    pub(super) fn update_key(&mut self, update: UpdateKey) -> Result<(), Refusal> {
        let UpdateKey {
            project,
            name,
            description,
            functions,
            expires_at,
        } = update;
        let before = self.key_to_change(project, &name)?.clone();
        if let Some(text) = &description {
            checks::description(text)?;
        }
        let functions = functions
            .map(|wanted| self.functions_for_key(project, &name, wanted))
            .transpose()?;

        let after = FunctionKey {
            description: description.unwrap_or_else(|| before.description.clone()),
            expires_at: expires_at.unwrap_or(before.expires_at),
            ..before.clone()
        };
        let expiry_changed = after.expires_at != before.expires_at;
        if after != before {
            self.state.view.keys.insert(before.id, after);
            self.emit(Effect::KeyChanged(before.id));
        }
        let bound = self.functions_bound(&before);
        if let Some(wanted) = functions {
            for function in bound.difference(&wanted) {
                self.unbind(before.id, function);
            }
            for function in wanted.difference(&bound) {
                self.bind(before.id, function.clone());
            }
        }
        if expiry_changed {
            for (_, function) in bound {
                self.emit(Effect::FunctionChanged(function));
            }
        }
        Ok(())
    }

    pub(super) fn delete_key(&mut self, project: ProjectId, name: KeyName) -> Result<(), Refusal> {
        let key = self.key_to_change(project, &name)?.clone();
        for function in self.functions_bound(&key) {
            self.unbind(key.id, &function);
        }
        self.state.view.keys.remove(&key.id);
        self.state.view.key_names.remove(&(project, name));
        self.emit(Effect::KeyChanged(key.id));
        Ok(())
    }

    fn key_to_change(&self, project: ProjectId, name: &KeyName) -> Result<&FunctionKey, Refusal> {
        self.project(project)?;
        let found = self.state.view.key_named(project, name);
        found.ok_or_else(|| Refusal::NotFound(checks::key_named(name)))
    }

    /// Checks what a key is to be bound to.
    fn functions_for_key(
        &self,
        project: ProjectId,
        key: &KeyName,
        wanted: Vec<FunctionRef>,
    ) -> Result<BTreeSet<Bound>, Refusal> {
        let mut functions = BTreeSet::new();
        for function in wanted {
            let found = self
                .state
                .view
                .function_named(project, &function)
                .ok_or_else(|| {
                    let reason = format!("{} does not exist", checks::named(&function));
                    Refusal::Invalid(Invalid::new("functions", reason))
                })?;
            let bound = self.state.view.bindings.get(&found.function.id);
            if bound.is_some_and(|k| k.len() >= limits::FUNCTION_KEYS_MAX && !k.contains(key)) {
                return Err(Refusal::Quota(format!(
                    "{} has {} keys, which is the most it may have",
                    checks::named(&function),
                    limits::FUNCTION_KEYS_MAX
                )));
            }
            functions.insert((function, found.function.id));
        }
        if functions.len() > limits::KEY_FUNCTIONS_MAX {
            let (most, has) = (limits::KEY_FUNCTIONS_MAX, functions.len());
            let reason = format!("must be at most {most} functions, are {has}");
            return Err(Invalid::new("functions", reason).into());
        }
        Ok(functions)
    }

    /// Checks the keys that a function is to have. `function` is absent while it is being made.
    pub(super) fn keys_for_function(
        &self,
        project: ProjectId,
        function: Option<FunctionId>,
        wanted: Vec<KeyName>,
    ) -> Result<BTreeSet<KeyName>, Refusal> {
        let has = function.and_then(|id| self.state.view.bindings.get(&id));
        let wanted: BTreeSet<_> = wanted.into_iter().collect();
        if wanted.len() > limits::FUNCTION_KEYS_MAX {
            let (most, has) = (limits::FUNCTION_KEYS_MAX, wanted.len());
            let reason = format!("must be at most {most} keys, are {has}");
            return Err(Invalid::new("keys", reason).into());
        }
        for name in &wanted {
            let key = self.state.view.key_named(project, name).ok_or_else(|| {
                let reason = format!("{} does not exist", checks::key_named(name));
                Refusal::Invalid(Invalid::new("keys", reason))
            })?;
            let new = has.is_none_or(|names| !names.contains(name));
            if new && key.functions.len() >= limits::KEY_FUNCTIONS_MAX {
                return Err(Refusal::Quota(format!(
                    "{} is bound to {} functions, which is the most it may be",
                    checks::key_named(name),
                    limits::KEY_FUNCTIONS_MAX
                )));
            }
        }
        Ok(wanted)
    }

    /// Makes `wanted`, which were checked, the keys of a function. True when that changed anything.
    pub(super) fn set_keys(
        &mut self,
        project: ProjectId,
        function: &Bound,
        wanted: &BTreeSet<KeyName>,
    ) -> bool {
        let has = self
            .state
            .view
            .bindings
            .get(&function.1)
            .cloned()
            .unwrap_or_default();
        for name in has.difference(wanted) {
            self.unbind(self.key_id(project, name), function);
        }
        for name in wanted.difference(&has) {
            self.bind(self.key_id(project, name), function.clone());
        }
        has != *wanted
    }

    fn key_id(&self, project: ProjectId, name: &KeyName) -> KeyId {
        self.state
            .view
            .key_named(project, name)
            .expect("checked, or bound")
            .id
    }

    fn functions_bound(&self, key: &FunctionKey) -> BTreeSet<Bound> {
        let find = |function: &FunctionRef| {
            let found = self.state.view.function_named(key.project, function);
            (
                function.clone(),
                found
                    .expect("keys name existing functions only")
                    .function
                    .id,
            )
        };
        key.functions.iter().map(find).collect()
    }

    fn bind(&mut self, key: KeyId, (function, id): Bound) {
        let view = &mut self.state.view;
        let key = view.keys.get_mut(&key).expect("the caller has it");
        if let Err(place) = key.functions.binary_search(&function) {
            key.functions.insert(place, function);
        }
        let mut names = view.bindings.get(&id).cloned().unwrap_or_default();
        names.insert(key.name.clone());
        let key = key.id;
        view.bindings.insert(id, names);
        self.emit(Effect::KeyChanged(key));
        self.emit(Effect::FunctionChanged(id));
    }

    fn unbind(&mut self, key: KeyId, (function, id): &Bound) {
        let view = &mut self.state.view;
        let key = view.keys.get_mut(&key).expect("the caller has it");
        key.functions.retain(|other| other != function);
        if let Some(names) = view.bindings.get_mut(id) {
            names.remove(&key.name);
            if names.is_empty() {
                view.bindings.remove(id);
            }
        }
        let key = key.id;
        self.emit(Effect::KeyChanged(key));
        self.emit(Effect::FunctionChanged(*id));
    }
}
