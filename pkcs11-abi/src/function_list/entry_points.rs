//! Macros over the list of functions. They make an entry point and a symbol for each function, and a table for each version.

/// Makes one entry point. It passes the boundary in `entry`. For `_` it needs no initialised module.
macro_rules! entry_point {
    ($name:ident($($parameter:ident: $type:ty),*) = |$module:tt| $call:expr) => {
        #[allow(non_snake_case, unused_unsafe, clippy::multiple_unsafe_ops_per_block)]
        unsafe extern "C" fn $name($($parameter: $type),*) -> cryptoki_sys::CK_RV {
            // SAFETY: by the standard, the caller promises that each pointer is null, or points to the memory that the other
            // parameters describe, until the function returns.
            $crate::function_list::entry_points::enter!($name, $module, unsafe { $call })
        }
    };
}

macro_rules! enter {
    ($name:ident, _, $call:expr) => {
        $crate::entry::guard(stringify!($name), || $call)
    };
    ($name:ident, $module:ident, $call:expr) => {
        $crate::entry::call(stringify!($name), |$module| $call)
    };
}

/// Makes the exported symbol of one function. The tables hold the entry points and not the symbols: the loader could bind a
/// reference to an exported symbol to the C_Sign of another module, if that module was loaded with RTLD_GLOBAL.
macro_rules! symbol {
    ($name:ident($($parameter:ident: $type:ty),*)) => {
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        unsafe extern "C" fn $name($($parameter: $type),*) -> cryptoki_sys::CK_RV {
            // SAFETY: the caller's promise to this function is the promise that the entry point needs.
            unsafe { super::$name($($parameter),*) }
        }
    };
}

/// Makes one table, and asserts that its pointers are in the list's order without gaps.
macro_rules! table {
    ($table:ident: $type:ident = $major:literal, $minor:literal; $functions:literal, $lp64:literal, $windows:literal; $($name:ident)*) => {
        static $table: cryptoki_sys::$type = cryptoki_sys::$type {
            version: cryptoki_sys::CK_VERSION { major: $major, minor: $minor },
            $($name: Some($name),)*
        };

        const _: () = $crate::function_list::layout::assert_table(
            size_of::<cryptoki_sys::$type>(),
            &$crate::function_list::layout::Sizes { functions: $functions, lp64: $lp64, windows: $windows },
            &[$(std::mem::offset_of!(cryptoki_sys::$type, $name)),*],
        );
    };
}

macro_rules! functions {
    (
        V2_40 { $(fn $n1:ident($($p1:ident: $t1:ty),*) = |$m1:tt| $c1:expr;)* }
        V3_0 { $(fn $n2:ident($($p2:ident: $t2:ty),*) = |$m2:tt| $c2:expr;)* }
        V3_2 { $(fn $n3:ident($($p3:ident: $t3:ty),*) = |$m3:tt| $c3:expr;)* }
    ) => {
        $($crate::function_list::entry_points::entry_point!($n1($($p1: $t1),*) = |$m1| $c1);)*
        $($crate::function_list::entry_points::entry_point!($n2($($p2: $t2),*) = |$m2| $c2);)*
        $($crate::function_list::entry_points::entry_point!($n3($($p3: $t3),*) = |$m3| $c3);)*

        mod symbols {
            use super::*;

            $($crate::function_list::entry_points::symbol!($n1($($p1: $t1),*));)*
            $($crate::function_list::entry_points::symbol!($n2($($p2: $t2),*));)*
            $($crate::function_list::entry_points::symbol!($n3($($p3: $t3),*));)*
        }

        $crate::function_list::entry_points::table!(V2_40: CK_FUNCTION_LIST = 2, 40; 68, 552, 546; $($n1)*);
        $crate::function_list::entry_points::table!(V3_0: CK_FUNCTION_LIST_3_0 = 3, 0; 92, 744, 738; $($n1)* $($n2)*);
        $crate::function_list::entry_points::table!(V3_2: CK_FUNCTION_LIST_3_2 = 3, 2; 104, 840, 834; $($n1)* $($n2)* $($n3)*);

        /// Every function, in the standard's order.
        #[cfg(test)]
        pub(super) const NAMES: &[&str] = &[$(stringify!($n1),)* $(stringify!($n2),)* $(stringify!($n3)),*];
    };
}

pub(super) use {enter, entry_point, functions, symbol, table};
