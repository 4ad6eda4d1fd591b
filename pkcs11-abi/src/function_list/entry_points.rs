//! What is made of the list: a C face for each function, a table for each version, a symbol for each name.

/// One face: through the boundary with the module, or for `_` without one.
macro_rules! entry_point {
    ($name:ident($($parameter:ident: $type:ty),*) = |$module:tt| $call:expr) => {
        #[allow(non_snake_case, unused_unsafe, clippy::multiple_unsafe_ops_per_block)]
        unsafe extern "C" fn $name($($parameter: $type),*) -> cryptoki_sys::CK_RV {
            // SAFETY: the caller promises, as the standard demands, that each pointer is null or points to what
            // the other parameters say until the function returns.
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

/// The symbol of one function. The tables hold the faces and not the symbols: a reference to an exported symbol
/// is bound when the library is loaded, and to another module's C_Sign if that was loaded for all to see.
macro_rules! symbol {
    ($name:ident($($parameter:ident: $type:ty),*)) => {
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        unsafe extern "C" fn $name($($parameter: $type),*) -> cryptoki_sys::CK_RV {
            // SAFETY: the caller's promise to this function is the one that its face asks for.
            unsafe { super::$name($($parameter),*) }
        }
    };
}

/// One table, and the proof that its pointers stand in the list's order and leave no slot.
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
