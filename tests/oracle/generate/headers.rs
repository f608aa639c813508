//! Headers that a forwarder carries along: IP and TCP options, extension headers, DSCP, padding.

use super::Generator;
use crate::packet::Packet;

impl Generator {
    /// Gives both labs' packet the same unimportant headers.
    pub(super) fn dress(&mut self, packets: &mut [Packet; 2]) {
        let [first, second] = packets;
        if self.one_in(3) {
            first.traffic_class = self.rng.u8(..);
        }
        first.label = self.rng.u8(..16);
        first.hop_limit = self.pick(&[64, 64, 255, 128, 2, 3, 33]);
        first.df = self.one_in(2);
        if self.one_in(12) {
            first.trailer = self.rng.usize(1..30);
        }
        if self.one_in(15) {
            if self.v6() {
                first.extensions = self.extensions();
            } else {
                first.options = self.ip_options();
            }
        }
        second.label = first.label;
        second.traffic_class = first.traffic_class;
        second.hop_limit = first.hop_limit;
        second.df = first.df;
        second.trailer = first.trailer;
        second.extensions.clone_from(&first.extensions);
        second.options.clone_from(&first.options);
    }

    pub(super) fn ip_options(&mut self) -> Vec<u8> {
        let mut options = match self.rng.u8(..9) {
            // No operation, end of list.
            0 => vec![1, 1, 1, 0],
            // Router alert.
            1 => vec![148, 4, 0, 0],
            // Record route, timestamps: full, so that nobody has to write into them.
            2 => vec![7, 7, 8, 192, 0, 2, 1, 0],
            3 => vec![68, 8, 9, 0, 1, 2, 3, 4],
            // The same with room.
            4 => vec![7, 7, 4, 0, 0, 0, 0, 0],
            5 => vec![68, 8, 5, 0, 0, 0, 0, 0],
            // Source routes: to be followed, and at their end.
            6 => vec![131, 7, 4, 10, 8, 0, 2, 0],
            7 => vec![137, 7, 8, 192, 0, 2, 1, 0],
            // Of a kind that nobody knows.
            _ => vec![94, 6, 1, 2, 3, 4, 1, 0],
        };
        if self.one_in(6) {
            // Lists that end in the middle of an option.
            options[1] = self.pick(&[0, 1, 3, 39, 200]);
        }
        options
    }

    pub(super) fn extensions(&mut self) -> Vec<(u8, Vec<u8>)> {
        let padding = vec![1, 4, 0, 0, 0, 0];
        let long = [vec![1, 12], vec![0; 12]].concat();
        let unknown_to_skip = vec![0x1e, 4, 1, 2, 3, 4];
        let unknown_to_drop = vec![0x5e, 4, 1, 2, 3, 4];
        let destination = [&padding, &long, &unknown_to_skip, &unknown_to_drop][self.rng.usize(..4)].clone();
        match self.rng.u8(..8) {
            0 => vec![(0, padding)],
            1 => vec![(0, vec![5, 2, 0, 0, 1, 0])],
            2 => vec![(60, destination)],
            3 => vec![(0, padding), (60, destination)],
            4 => vec![(0, unknown_to_skip), (60, long)],
            // Routing headers without segments left, and with.
            5 => vec![(43, vec![4, 0, 0, 0, 0, 0])],
            6 => vec![(43, [vec![0, 1, 0, 0, 0, 0], vec![0xfd; 16]].concat())],
            _ => {
                let count = self.rng.usize(1..9);
                vec![(60, padding); count]
            }
        }
    }

    pub(super) fn syn_options(&mut self) -> Vec<u8> {
        match self.rng.u8(..6) {
            0 => Vec::new(),
            1 => vec![2, 4, 5, 180],
            2 => vec![2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7],
            3 => vec![1, 2, 4, 5, 100, 1, 1, 0],
            4 => vec![2, 4, 2, 0],
            // Malformed lists.
            _ => self.pick(&[[2, 0, 1, 1], [2, 9, 1, 1], [3, 1, 2, 4], [2, 3, 5, 0]]).to_vec(),
        }
    }

    pub(super) fn tcp_options(&mut self) -> Vec<u8> {
        match self.rng.u8(..4) {
            0 => vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            1 => vec![1, 1, 5, 10, 0, 0, 1, 0, 0, 0, 2, 0],
            _ => Vec::new(),
        }
    }
}
