//! Each kernel against sums in double or exact integers, on every instruction set that this CPU has.

mod attention;
mod common;
mod layers;
mod pool;
mod products;
