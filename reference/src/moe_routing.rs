use crate::{Precision, Real, softmax};

/// One expert chosen for a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Route {
    /// The expert.
    pub expert: usize,
    /// Factor on its output.
    pub weight: f64,
}

/// Chooses `top_k` experts for each token: softmax over all experts, the largest first, ties to the lowest
/// index; with `renormalize` the chosen weights are divided by their sum (`norm_topk_prob` of Qwen3-MoE, always
/// on in Mixtral). `router_logits` is `[tokens, experts]`.
pub fn moe_routing<T: Real>(
    router_logits: &[T],
    experts: usize,
    top_k: usize,
    renormalize: bool,
    precision: Precision,
) -> Vec<Vec<Route>> {
    assert!(
        top_k <= experts && router_logits.len().is_multiple_of(experts),
        "moe_routing: {experts} experts"
    );
    let route = |logits: &[T]| {
        // The router's softmax is in f32 in every implementation: rounding it could reorder the experts.
        let register = if precision == Precision::F64 { Precision::F64 } else { Precision::F32 };
        let probs = softmax(logits, register);
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]));
        order.truncate(top_k);
        let sum = if renormalize { precision.sum(order.iter().map(|&e| probs[e])) } else { 1.0 };
        order.iter().map(|&e| Route { expert: e, weight: precision.store(probs[e] / sum) }).collect()
    };
    router_logits.chunks_exact(experts).map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let logits: Vec<f64> = [1f64, 4.0, 2.0, 1.0].iter().map(|x| x.ln()).collect();
        let routes = moe_routing(&logits, 4, 2, false, Precision::F64);
        assert_eq!([routes[0][0].expert, routes[0][1].expert], [1, 2]);
        assert!((routes[0][0].weight - 0.5).abs() < 1e-15 && (routes[0][1].weight - 0.25).abs() < 1e-15);
        let routes = moe_routing(&logits, 4, 2, true, Precision::F64);
        assert!((routes[0][0].weight - 2.0 / 3.0).abs() < 1e-15);
        assert!((routes[0][1].weight - 1.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn ties_go_to_the_lowest_expert() {
        let routes = moe_routing(&[0.5f32, 1.0, 1.0, 1.0], 4, 2, true, Precision::F32);
        assert_eq!(routes[0], [Route { expert: 1, weight: 0.5 }, Route { expert: 2, weight: 0.5 }]);
    }
}
