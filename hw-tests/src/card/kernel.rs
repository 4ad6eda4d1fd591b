//! The operating system under the applets: Trussed with the backends of a Nitrokey 3, on this thread.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use trussed::{
    ClientImplementation,
    backend::BackendId,
    pipe::{ServiceEndpoint, TrussedChannel},
    platform::{Platform, Syscall},
    serde_extensions::{ExtensionDispatch, ExtensionId, ExtensionImpl},
    service::{Service, ServiceResources},
    store::Store as _,
    types::{Context, CoreContext},
    virt::{Store, UserInterface},
};
use trussed_auth::AuthExtension;
use trussed_auth_backend::{AuthBackend, AuthContext, FilesystemLayout};
use trussed_chunked::ChunkedExtension;
use trussed_core::{
    Error,
    api::{Reply, Request, reply, request},
    types::{Bytes, Location, PathBuf},
};
use trussed_hpke::HpkeExtension;
use trussed_rsa_alloc::SoftwareRsa;
use trussed_staging::{StagingBackend, StagingContext};
use trussed_wrap_key_to_file::WrapKeyToFileExtension;

/// The interface of an applet to the kernel.
pub(super) type Client<'a> = ClientImplementation<'a, SystemCall<'a>, Backends>;

/// The kernel, with the endpoints of the applets. Clones are the same kernel.
#[derive(Clone)]
pub(super) struct SystemCall<'a>(Rc<RefCell<Kernel<'a>>>);

struct Kernel<'a> {
    store: Store<'a>,
    service: Service<Board<'a>, Backends>,
    endpoints: BTreeMap<&'static str, ServiceEndpoint<'a, Backend, Contexts>>,
}

impl<'a> SystemCall<'a> {
    /// Starts a kernel over `store`. Keys are derived from `seed` or from the system's random numbers.
    pub(super) fn boot(store: Store<'a>, seed: Option<u64>) -> Self {
        let board = Board {
            rng: ChaCha8Rng::from_seed(seed_bytes(seed)),
            store,
            ui: UserInterface::new(),
        };
        let backends = Backends {
            auth: AuthBackend::with_hw_key(
                Location::Internal,
                Bytes::from(b"virtual hw key"),
                FilesystemLayout::V0,
            ),
            staging: StagingBackend::new(),
        };
        let service = Service::with_dispatch(board, backends);
        Self(Rc::new(RefCell::new(Kernel {
            store,
            service,
            endpoints: BTreeMap::new(),
        })))
    }

    /// Makes a client called `name`, without the volatile state of its predecessor. Returns `None` if the predecessor is not
    /// dropped.
    pub(super) fn client(
        &self,
        name: &'static str,
        channel: &'a TrussedChannel,
    ) -> Option<Client<'a>> {
        let Kernel {
            store, endpoints, ..
        } = &mut *self.0.borrow_mut();
        endpoints.remove(name);
        let folder = PathBuf::try_from(name).ok()?;
        if store.vfs().exists(&folder) {
            store.vfs().remove_dir_all(&folder).ok()?;
        }
        let (requester, responder) = channel.split()?;
        let context = CoreContext::new(folder);
        endpoints.insert(name, ServiceEndpoint::new(responder, context, BACKENDS));
        Some(Client::new(requester, self.clone(), None))
    }
}

impl Syscall for SystemCall<'_> {
    fn syscall(&mut self) {
        let Kernel {
            service, endpoints, ..
        } = &mut *self.0.borrow_mut();
        for endpoint in endpoints.values_mut() {
            service.process(std::slice::from_mut(endpoint));
        }
    }
}

fn seed_bytes(seed: Option<u64>) -> [u8; 32] {
    let mut bytes = [0; 32];
    match seed {
        Some(seed) => {
            for (byte, from) in bytes.iter_mut().zip(seed.to_le_bytes()) {
                *byte = from;
            }
        }
        None => rand_core::OsRng.fill_bytes(&mut bytes),
    }
    bytes
}

/// Random numbers, storage, and a button that is always pressed.
pub(super) struct Board<'a> {
    rng: ChaCha8Rng,
    store: Store<'a>,
    ui: UserInterface,
}

impl<'a> Platform for Board<'a> {
    type R = ChaCha8Rng;
    type S = Store<'a>;
    type UI = UserInterface;

    fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.rng
    }

    fn store(&self) -> Store<'a> {
        self.store
    }

    fn user_interface(&mut self) -> &mut UserInterface {
        &mut self.ui
    }
}

/// The backends for a request, in the order of the firmware.
const BACKENDS: &[BackendId<Backend>] = &[
    BackendId::Custom(Backend::Staging),
    BackendId::Custom(Backend::Auth),
    BackendId::Custom(Backend::Rsa),
    BackendId::Core,
];

/// A backend beside Trussed's core.
#[derive(Clone, Copy, Debug)]
pub(super) enum Backend {
    Auth,
    Staging,
    Rsa,
}

/// The extensions of Trussed. PIV needs all of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Extension {
    Auth,
    WrapKeyToFile,
    Chunked,
    Hpke,
}

impl From<Extension> for u8 {
    fn from(extension: Extension) -> Self {
        extension as Self
    }
}

impl TryFrom<u8> for Extension {
    type Error = Error;

    fn try_from(id: u8) -> Result<Self, Error> {
        [Self::Auth, Self::WrapKeyToFile, Self::Chunked, Self::Hpke]
            .into_iter()
            .find(|extension| u8::from(*extension) == id)
            .ok_or(Error::InternalError)
    }
}

/// The state of the backends.
pub(super) struct Backends {
    auth: AuthBackend,
    staging: StagingBackend,
}

/// The backends' state for one client.
#[derive(Default)]
pub(super) struct Contexts {
    auth: AuthContext,
    staging: StagingContext,
}

impl ExtensionDispatch for Backends {
    type BackendId = Backend;
    type Context = Contexts;
    type ExtensionId = Extension;

    fn core_request<P: Platform>(
        &mut self,
        backend: &Backend,
        context: &mut Context<Contexts>,
        request: &Request,
        resources: &mut ServiceResources<P>,
    ) -> Result<Reply, Error> {
        use trussed::backend::Backend as _;
        let Context { core, backends, .. } = context;
        match backend {
            Backend::Auth => self
                .auth
                .request(core, &mut backends.auth, request, resources),
            Backend::Staging => {
                self.staging
                    .request(core, &mut backends.staging, request, resources)
            }
            Backend::Rsa => SoftwareRsa.request(core, &mut (), request, resources),
        }
    }

    fn extension_request<P: Platform>(
        &mut self,
        backend: &Backend,
        extension: &Extension,
        context: &mut Context<Contexts>,
        request: &request::SerdeExtension,
        resources: &mut ServiceResources<P>,
    ) -> Result<reply::SerdeExtension, Error> {
        let Context { core, backends, .. } = context;
        macro_rules! answer {
            ($extension:ty, $backend:ident) => {
                ExtensionImpl::<$extension>::extension_request_serialized(
                    &mut self.$backend,
                    core,
                    &mut backends.$backend,
                    request,
                    resources,
                )
            };
        }
        match (backend, extension) {
            (Backend::Auth, Extension::Auth) => answer!(AuthExtension, auth),
            (Backend::Staging, Extension::WrapKeyToFile) => {
                answer!(WrapKeyToFileExtension, staging)
            }
            (Backend::Staging, Extension::Chunked) => answer!(ChunkedExtension, staging),
            (Backend::Staging, Extension::Hpke) => answer!(HpkeExtension, staging),
            _ => Err(Error::RequestNotAvailable),
        }
    }
}

macro_rules! extension_ids {
    ($($extension:ty => $id:ident,)*) => {
        $(impl ExtensionId<$extension> for Backends {
            type Id = Extension;
            const ID: Extension = Extension::$id;
        })*
    };
}

extension_ids! {
    AuthExtension => Auth,
    WrapKeyToFileExtension => WrapKeyToFile,
    ChunkedExtension => Chunked,
    HpkeExtension => Hpke,
}
