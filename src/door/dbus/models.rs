//! `org.sotto.Sotto1.Model`: what is known of the models, and word of what changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::Notify;
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::door::fault;
use crate::door::told;
use crate::engine::{ModelHeader, ModelInfo, ModelState};

use super::info::{Info, collect, variant};
use super::paths::{self, ROOT};
use super::{Door, interfaces};

impl Door {
    /// Reads the headers of models that nobody has looked at yet.
    pub(super) async fn describe_models(&self, uid: u32) {
        let unread = |info: &ModelInfo| info.header.is_none() && info.state != ModelState::Failed;
        let ids = self.engine.models().into_iter().filter(unread).map(|info| info.id);
        told::describe(&self.engine, uid, ids).await;
    }

    /// The model whose path ends in `name`.
    pub(super) fn model(&self, name: &str) -> Option<ModelInfo> {
        self.engine.models().into_iter().find(|info| paths::escaped(&info.id) == name)
    }

    /// The value of a property of a model.
    pub(super) fn model_property(&self, info: &ModelInfo, name: &str) -> Option<OwnedVariant> {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let header = info.header.as_ref();
        match name {
            "Id" => variant(info.id.as_str()),
            "Aliases" => {
                let stands = |alias: &String| self.engine.resolve(Some(alias)).as_ref() == Some(&info.id);
                variant(self.engine.aliases().into_iter().filter(stands).collect::<Vec<_>>())
            }
            "State" => variant(info.state.as_str()),
            "Error" => variant(info.error.map_or("", fault::dbus_name)),
            "Architecture" => variant(header.map_or("", |h| h.architecture.as_str())),
            "Quantization" => variant(header.map_or("", |h| h.quantization.as_str())),
            "Parameters" => variant(header.map_or(0, |h| h.parameters)),
            "SizeBytes" => variant(info.size_bytes),
            "ResidentBytes" => {
                let mut bytes = 0;
                self.engine.metrics().each_model(|id, model| {
                    if id == info.id {
                        bytes = model.weight_bytes.get() + model.kv_bytes.get();
                    }
                });
                variant(bytes)
            }
            "ContextMax" => variant(header.map_or(0, |h| count(h.n_ctx_train))),
            "Context" => variant(header.map_or(0, |h| count(h.n_ctx))),
            "Capabilities" => {
                let has = |can: fn(&ModelHeader) -> bool| header.is_some_and(can);
                let all = [
                    ("generate", has(|h| h.generates)),
                    ("chat", has(|h| h.chat)),
                    ("embed", has(|h| h.embeds)),
                ];
                variant(all.into_iter().filter(|(_, can)| *can).map(|(what, _)| what).collect::<Vec<_>>())
            }
            "License" => variant(header.map_or("", |h| h.license.as_str())),
            "Pinned" => variant(info.pinned),
            _ => None,
        }
    }

    /// All properties of a model.
    pub(super) fn model_properties(&self, info: &ModelInfo) -> Info {
        let all = self.interfaces.get(interfaces::MODEL).map_or(&[][..], |model| &model.properties);
        collect(all.iter().map(|property| (property.name, self.model_property(info, property.name))))
    }

    /// What is told of the models together, by `GetManagedObjects`.
    pub(super) fn managed_objects(&self) -> HashMap<OwnedObjectPath, BTreeMap<&'static str, Info>> {
        let object = |info: &ModelInfo| {
            let properties = BTreeMap::from([(interfaces::MODEL, self.model_properties(info))]);
            (paths::model(Some(&info.id)), properties)
        };
        self.engine.models().iter().map(object).collect()
    }

    /// Paths of the models that are loaded.
    pub(super) fn loaded_models(&self) -> Vec<OwnedObjectPath> {
        let models = self.engine.models();
        let loaded = models.iter().filter(|info| info.state == ModelState::Loaded);
        loaded.map(|info| paths::model(Some(&info.id))).collect()
    }

    /// Properties that change now and then, of the manager and of each model.
    fn changing(&self) -> HashMap<OwnedObjectPath, (&'static str, Info)> {
        let manager = ["State", "StateReason", "DefaultModel", "LoadedModels"];
        let manager = collect(manager.map(|name| (name, self.manager_property(name))));
        let model = |info: &ModelInfo| {
            let names = ["Aliases", "State", "Error", "Context", "Pinned"];
            let of = collect(names.map(|name| (name, self.model_property(info, name))));
            (paths::model(Some(&info.id)), (interfaces::MODEL, of))
        };
        let mut all: HashMap<_, _> = self.engine.models().iter().map(model).collect();
        all.extend(
            zbus::ObjectPath::try_from(ROOT).map(|path| (path.into(), (interfaces::MANAGER, manager))),
        );
        all
    }

    /// Tells the bus what has changed, each time that the engine says that something has.
    pub(super) async fn tell_changes(self: Arc<Self>, changed: Arc<Notify>) {
        let (mut before, mut unloads) = (self.changing(), self.unloads());
        loop {
            changed.notified().await;
            let after = self.changing();
            for (path, (interface, now)) in &after {
                let Some((_, was)) = before.get(path) else {
                    self.tell_added(path).await;
                    continue;
                };
                let news: HashMap<_, _> =
                    now.iter().filter(|(key, value)| was.get(*key) != Some(value)).collect();
                if !news.is_empty() {
                    let body = (*interface, news, Vec::<&str>::new());
                    self.signal(path.as_str(), interfaces::PROPERTIES, "PropertiesChanged", &body).await;
                }
            }
            for path in before.keys().filter(|path| !after.contains_key(*path)) {
                let body = (path, vec![interfaces::MODEL]);
                self.signal(ROOT, interfaces::OBJECT_MANAGER, "InterfacesRemoved", &body).await;
            }
            let now = self.unloads();
            for session in self.sessions.all() {
                if now.get(&session.model) > unloads.get(&session.model) {
                    session.close(&self, "model-unloaded");
                }
            }
            (before, unloads) = (after, now);
        }
    }

    async fn tell_added(&self, path: &OwnedObjectPath) {
        let models = self.engine.models();
        let Some(info) = models.iter().find(|info| paths::model(Some(&info.id)) == *path) else { return };
        let body = (path, BTreeMap::from([(interfaces::MODEL, self.model_properties(info))]));
        self.signal(ROOT, interfaces::OBJECT_MANAGER, "InterfacesAdded", &body).await;
    }

    /// How often each model was unloaded by name.
    fn unloads(&self) -> HashMap<String, u64> {
        self.engine.models().into_iter().map(|info| (info.id, info.n_unloaded)).collect()
    }
}
