//! Real containerd; asked for by the feature.
