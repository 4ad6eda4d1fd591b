//! The handles of one token's objects.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use claviger_token::{Object, ObjectId, Template};
use cryptoki_sys::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE};

use crate::{handle, rv::ReturnCode};

/// The object handles of one token. An object keeps its handle. The handle of a private object lasts until the logout, the
/// handle of a session object until its session closes.
#[derive(Debug, Default)]
pub(crate) struct ObjectHandles {
    by_id: HashMap<ObjectId, CK_OBJECT_HANDLE>,
    objects: HashMap<CK_OBJECT_HANDLE, Arc<Object>>,
    /// Ordered by creation, because handles ascend.
    session_objects: BTreeMap<CK_OBJECT_HANDLE, (CK_SESSION_HANDLE, Arc<Object>)>,
}

impl ObjectHandles {
    /// Returns the handle of a token object. A new object gets a new handle.
    pub(crate) fn handle(&mut self, object: Arc<Object>) -> CK_OBJECT_HANDLE {
        let handle = *self.by_id.entry(object.id).or_insert_with(handle::fresh);
        self.objects.insert(handle, object);
        handle
    }

    /// Returns the object behind a handle.
    pub(crate) fn get(&self, handle: CK_OBJECT_HANDLE) -> Option<&Arc<Object>> {
        let of_session = || self.session_objects.get(&handle).map(|(_, object)| object);
        self.objects.get(&handle).or_else(of_session)
    }

    /// Removes the private objects. After the next login, a search gives the token's private objects new handles.
    pub(crate) fn forget_private(&mut self) {
        self.objects.retain(|_, object| !object.is_private());
        let objects = &self.objects;
        self.by_id.retain(|_, handle| objects.contains_key(handle));
        self.session_objects
            .retain(|_, (_, object)| !object.is_private());
    }

    /// Removes an object that was deleted from the token.
    pub(crate) fn remove_object(&mut self, handle: CK_OBJECT_HANDLE) {
        if let Some(object) = self.objects.remove(&handle) {
            self.by_id.remove(&object.id);
        }
    }

    /// Returns the session objects that match `template`. Private objects are included only if `logged_in` is set.
    pub(crate) fn find_session_objects(
        &self,
        template: &Template,
        logged_in: bool,
    ) -> Vec<CK_OBJECT_HANDLE> {
        let seen =
            |object: &Object| (logged_in || !object.is_private()) && object.matches(template);
        self.session_objects
            .iter()
            .filter(|(_, (_, object))| seen(object))
            .map(|(handle, _)| *handle)
            .collect()
    }

    /// Adds an object of the session `owner` and returns its handle.
    pub(crate) fn add(&mut self, owner: CK_SESSION_HANDLE, object: Object) -> CK_OBJECT_HANDLE {
        let handle = handle::fresh();
        self.session_objects
            .insert(handle, (owner, Arc::new(object)));
        handle
    }

    /// Replaces a session object by `object`. Removes it for `None`.
    ///
    /// # Errors
    /// OBJECT_HANDLE_INVALID if the object was removed meanwhile.
    pub(crate) fn replace(
        &mut self,
        handle: CK_OBJECT_HANDLE,
        object: Option<Object>,
    ) -> Result<(), ReturnCode> {
        let entry = self.session_objects.get_mut(&handle);
        let (_, entry) = entry.ok_or(ReturnCode::OBJECT_HANDLE_INVALID)?;
        match object {
            Some(object) => *entry = Arc::new(object),
            None => drop(self.session_objects.remove(&handle)),
        }
        Ok(())
    }

    /// Removes the objects of a closed session.
    pub(crate) fn session_closed(&mut self, owner: CK_SESSION_HANDLE) {
        self.session_objects.retain(|_, (of, _)| *of != owner);
    }
}
