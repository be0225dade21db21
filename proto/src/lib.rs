//! Generated types, clients and servers of the hyperv-kube protos.
