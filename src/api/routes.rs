//! The table of routes in the making: what is put into it counts its requests under its route.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter};

use super::request_metrics::{Counted, RequestMetrics};
use crate::error::{Code, Error};

/// Routes whose requests are counted.
pub struct Routes<'a, S> {
    requests: &'a RequestMetrics,
    router: Router<S>,
}

impl<'a, S: Clone + Send + Sync + 'static> Routes<'a, S> {
    pub fn new(requests: &'a RequestMetrics) -> Self {
        Routes { requests, router: Router::new() }
    }

    /// Adds a path with the methods that `add` puts there.
    pub fn route(mut self, path: &'static str, add: impl FnOnce(Methods<'a, S>) -> Methods<'a, S>) -> Self {
        let methods = add(Methods { requests: self.requests, path, methods: MethodRouter::new() });
        self.router = self.router.route(path, methods.methods);
        self
    }

    /// The routes, with the answers to what is not among them (C-CONV-15). axum adds the `Allow` header itself.
    pub fn finish(self) -> Router<S> {
        let nothing_here = async || Error::new(Code::NotFound, "there is nothing at this path");
        let other_method = async || Error::new(Code::MethodNotAllowed, "this path does not take this method");
        let other = || self.requests.other();
        self.router
            .fallback(Counted { handler: nothing_here, route: other() })
            .method_not_allowed_fallback(Counted { handler: other_method, route: other() })
    }
}

/// The methods of one path.
pub struct Methods<'a, S> {
    requests: &'a RequestMetrics,
    path: &'static str,
    methods: MethodRouter<S>,
}

macro_rules! methods {
    ($($name:ident: $filter:ident;)*) => { $(
        pub fn $name<H, T>(self, handler: H) -> Self
        where
            H: Handler<T, S>,
            H::Future: Unpin,
            T: 'static,
        {
            self.on(MethodFilter::$filter, stringify!($filter), handler)
        }
    )* };
}

impl<S: Clone + Send + Sync + 'static> Methods<'_, S> {
    // HEAD goes to the handler of GET, and counts there, unless it has one of its own.
    methods! {
        get: GET;
        head: HEAD;
        post: POST;
        put: PUT;
        delete: DELETE;
    }

    fn on<H, T>(mut self, filter: MethodFilter, method: &'static str, handler: H) -> Self
    where
        H: Handler<T, S>,
        H::Future: Unpin,
        T: 'static,
    {
        let counted = Counted { handler, route: self.requests.route(method, self.path) };
        self.methods = self.methods.on(filter, counted);
        self
    }
}
